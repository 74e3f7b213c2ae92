"""Runs of the tools: trainings, what ends them, and what is done with a checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from mmseg_coop.engine import load_checkpoint_data
from tests.conftest import MINI, ROOT

pytestmark = pytest.mark.cuda


@pytest.fixture
def run(device, run_tool, mini_data, run_options, tmp_path):
    """Run a tool on the miniature pair."""

    def call(path, *words, data=None, options=(), **code):
        options = run_options(data or mini_data(), *options)
        return run_tool(path, MINI, *words, *options, cwd=tmp_path, **code)

    return call


def weights(file):
    """All numbers of the model and the optimizer in a checkpoint, in one tensor."""
    content = load_checkpoint_data(file, 'cpu')
    states = content['optimizer']['state'].values()
    tensors = [*content['state_dict'].values(), *(state['momentum_buffer'] for state in states)]
    return torch.cat([tensor.double().flatten() for tensor in tensors])


@pytest.mark.parametrize(
    'words',
    ['--amp float16', '--amp bfloat16 --channels-last', '--amp float16 --channels-last --compile'],
)
def test_trains_in_any_precision_and_layout(words, device, run, tmp_path):
    if device.type == 'cpu':
        pytest.skip('tests/engine/test_fast_training.py has what there is on the CPU')
    printed = run('tools/train.py', '--work-dir', tmp_path / 'run', *words.split())
    assert 'parameters on cuda:0' in printed
    assert printed.count('evaluation') == 2
    assert weights(tmp_path / 'run/iter_4.pth').isfinite().all()


def test_a_resumed_training_goes_on_as_if_nothing_had_happened(trained, run, tmp_path):
    """On a GPU sums differ in their last digits; what a step changes is far more."""
    folder = trained[0]
    run('tools/train.py', '--work-dir', tmp_path / 'run', '--resume', folder / 'iter_3.pth')
    before, straight = weights(folder / 'iter_3.pth'), weights(folder / 'iter_4.pth')
    resumed = weights(tmp_path / 'run/iter_4.pth')
    assert (resumed - straight).norm() <= 0.01 * (straight - before).norm()


def test_a_process_of_its_own_with_nccl_and_synchronized_batch_norm(
    device, mini_data, run_options, tmp_path
):
    if device.type == 'cpu':
        pytest.skip('tests/engine/test_two_processes.py has two processes with gloo')
    norms = ['backbone.networks.top', 'backbone.networks.bottom', 'decode_head']
    options = run_options(mini_data(), *(f'model.{part}.norm_cfg.type=SyncBN' for part in norms))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=1']
    command += [ROOT / 'tools/train.py', MINI, '--launcher', 'pytorch', '--work-dir', tmp_path]
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}'}
    done = subprocess.run(
        [*map(str, command), *options], env=environment, cwd=tmp_path, capture_output=True,
        text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'parameters on cuda:0' in done.stdout
    assert weights(tmp_path / 'iter_4.pth').isfinite().all()


def test_a_label_out_of_range_is_named_and_the_device_goes_on(device, run, mini_data, tmp_path):
    data = shutil.copytree(mini_data(), tmp_path / 'data')
    for file in sorted((data / 'ann_dir/train').iterdir())[:2]:
        cv2.imwrite(str(file), np.full((64, 64), 77, np.uint8))
    words = ('--no-validate', '--work-dir', tmp_path / 'run')
    said = run('tools/train.py', *words, data=data, code=1)
    assert said.startswith('error: ')
    assert '77' in said
    assert f'{data}/ann_dir/train/' in said
    assert torch.ones(2, device=device).sum().item() == 2  # an assertion of a kernel would raise
    run('tools/train.py', *words, '--data-faults', 'skip', data=data)


def test_a_loss_that_is_not_finite_ends_the_training(run, tmp_path):
    options = ['optim_wrapper.optimizer.lr=1e30']
    said = run('tools/train.py', '--work-dir', tmp_path / 'run', options=options, code=1)
    assert 'not finite' in said
    for file in (tmp_path / 'run').glob('*.pth'):
        assert weights(file).isfinite().all()


@pytest.mark.parametrize(
    ('path', 'words'),
    [
        ('tools/test.py', '--output all --out maps --tta'),
        ('tools/test.py', '--optimize --dtype {half}'),
        ('tools/analysis_tools/analyze_cooperation.py', '--device {device} --out analysis'),
        ('tools/analysis_tools/confusion_matrix.py', '--device {device} --out confusion'),
    ],
    ids=['test', 'test --optimize', 'analyze_cooperation', 'confusion_matrix'],
)
def test_a_checkpoint_of_the_device_is_used_there(path, words, device, run, trained):
    half = 'float16' if device.type == 'cuda' else 'bfloat16'
    words = words.format(device=device.type, half=half).split()
    assert 'IoU' in run(path, trained[0] / 'iter_4.pth', *words)


def test_images_are_segmented_on_the_device(device, run_tool, trained, mini_data, tmp_path):
    images, weights = mini_data() / 'img_dir/test', trained[0] / 'iter_4.pth'
    words = (images, MINI, weights, '--device', device.type, '--labels', '--out', tmp_path / 'out')
    run_tool('demo/image_demo.py', *words)
    for folder in ('.', 'top', 'bottom', 'ensemble'):
        assert len([*(tmp_path / 'out' / folder).glob('*.png')]) == len([*images.iterdir()])
