"""Costs at the sizes of the papers; none is asserted, for they are of the machine."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.conftest import ROOT

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _only_on_a_gpu(device):
    if device.type == 'cpu':
        pytest.skip('tests/analysis/test_costs.py measures on the CPU')


VOC = '1xb6-88k_voc12aug-513x513.py'
PAIR = ROOT / f'configs/cross_coop/cross-coop_x65-r101-d16_{VOC}'
SINGLE = [
    ROOT / f'configs/deeplabv3plus/deeplabv3plus_{name}-d16_{VOC}' for name in ('x65', 'r101')
]


@pytest.mark.parametrize('precision', ['', '--amp --channels-last'], ids=['float32', 'fast'])
@pytest.mark.parametrize('size', ['513x513', '768x768'])
def test_the_pair_of_the_paper_against_two_networks(size, precision, tool, keep):
    words = [PAIR, '--vs', *SINGLE, '--size', size, '--batch-size', 6, '--repeats', 5]
    name = f'benchmark-{size}{precision.replace(" ", "").replace("--", "-")}.txt'
    try:
        done = tool('tools/analysis_tools/benchmark.py', *words, *precision.split())
    except torch.cuda.OutOfMemoryError as error:  # of the device's size, and worth knowing
        keep(name, f'does not fit: {error}\n')
        pytest.skip(f'{size}, batch 6, does not fit into the memory of this GPU')
    assert done.returncode == 0, done.stderr
    keep(name, done.stdout)
    assert 'train step peak (MiB)' in done.stdout


def test_attentions(tool, keep):
    words = ['--sizes', '96x96', '256x128', '--repeats', 10]
    done = tool('tools/analysis_tools/attention_cost.py', '--train', *words)
    assert done.returncode == 0, done.stderr
    keep('attention_cost.txt', done.stdout)
    assert 'NonLocal2d by SPA' in done.stdout
