"""The same seed gives the same weights, in processes that know nothing of each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmseg_coop.engine import load_checkpoint_data

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
ITERATIONS = 20


@pytest.fixture(scope='module')
def train(small_options, tmp_path_factory):
    """Train in a process of its own and return the last checkpoint."""

    def run(seed, *, hash_seed, workers):
        folder = tmp_path_factory.mktemp('run')
        options = small_options(**{
            'randomness.seed': seed,
            'train_cfg.max_iters': ITERATIONS,
            'train_cfg.val_interval': ITERATIONS // 2,
            'train_dataloader.num_workers': workers,
            'train_dataloader.persistent_workers': workers > 0,
            'default_hooks.checkpoint.interval': ITERATIONS,
            'default_hooks.logger.interval': ITERATIONS,
        })  # fmt: skip
        done = subprocess.run(
            [sys.executable, ROOT / 'tools/train.py', CONFIG, '--work-dir', folder,
             '--cfg-options', *(f'{key}={value}' for key, value in options.items())],
            cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, 'PYTHONHASHSEED': hash_seed, 'OMP_NUM_THREADS': '1'},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return load_checkpoint_data(folder / f'iter_{ITERATIONS}.pth', 'cpu')

    return run


def bits(checkpoint):
    """Weights, buffers and state of the optimizer, each as its bytes."""
    tensors = dict(checkpoint['state_dict'])
    for number, state in checkpoint['optimizer']['state'].items():
        tensors[f'momentum {number}'] = state['momentum_buffer']
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors.items()}


def test_the_same_seed_gives_the_same_weights_bit_for_bit(train):
    first = train(7, hash_seed='1', workers=0)
    second = train(7, hash_seed='2', workers=2)  # who reads the images does not matter
    assert first['meta']['iter'] == ITERATIONS
    assert bits(first) == bits(second)
    losses = [c['message_hub']['log_scalars']['train/loss'].data[0] for c in (first, second)]
    assert losses[0].tolist() == losses[1].tolist()

    other = train(8, hash_seed='1', workers=0)
    weights = [name for name in first['state_dict'] if name.endswith('.weight')]
    assert len(weights) > 50
    for name in weights:
        assert not torch.equal(first['state_dict'][name], other['state_dict'][name]), name
