"""Costs at the sizes of the papers; none is asserted, for they are of the machine."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import ROOT

pytestmark = pytest.mark.cuda
VOC = '1xb6-88k_voc12aug-513x513.py'
PAIR = ROOT / f'configs/cross_coop/cross-coop_x65-r101-d16_{VOC}'
SINGLE = [
    ROOT / f'configs/deeplabv3plus/deeplabv3plus_{name}-d16_{VOC}' for name in ('x65', 'r101')
]
FAST = '--amp float16 --channels-last --optimize --dtype float16'


@pytest.fixture(autouse=True)
def _only_on_a_gpu(device):
    if device.type == 'cpu':
        pytest.skip('tests/analysis/test_costs.py measures on the CPU')


@pytest.mark.parametrize('options', ['', FAST], ids=['float32', 'float16'])
@pytest.mark.parametrize('size', ['513x513', '768x768'])
def test_the_pair_of_the_paper_against_two_networks(size, options, request, tool, keep):
    words = [PAIR, '--vs', *SINGLE, '--size', size, '--batch-size', 6, '--repeats', 5]
    file = f'{request.node.callspec.id}-benchmark.txt'
    try:
        done = tool('tools/analysis_tools/benchmark.py', *words, *options.split())
    except torch.cuda.OutOfMemoryError as error:  # worth knowing, and no fault
        keep(file, f'does not fit: {error}\n')
        pytest.skip(f'{size}, batch 6, does not fit into the memory of this GPU')
    assert done.returncode == 0, done.stderr
    keep(file, done.stdout)
    assert 'train step peak (MiB)' in done.stdout


@pytest.fixture(params=['float32', 'tf32', 'float16', 'bfloat16'])
def precision(request, monkeypatch):
    is_tf32 = request.param == 'tf32'
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', is_tf32)
    torch.set_float32_matmul_precision('high' if is_tf32 else 'highest')
    yield request.param
    torch.set_float32_matmul_precision('highest')


def test_attentions(precision, tool, keep):
    """Under autocast ours compute in float32 all the same, their peers in half precision."""
    half = getattr(torch, precision) if 'float16' in precision else torch.float16
    with torch.autocast('cuda', half, enabled='float16' in precision):
        done = tool('tools/analysis_tools/attention_cost.py', '--train', '--repeats', 10)
    assert done.returncode == 0, done.stderr
    keep(f'{precision}-attentions.txt', f'precision of this run: {precision}\n{done.stdout}')
    assert 'NonLocal2d by SPA' in done.stdout
