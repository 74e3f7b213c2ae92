"""A long training needs no more memory than a short one."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests.conftest import BACKBONES, ROOT

#: Between two iterations. Of one thing kept in each iteration there would be 800.
ALLOWED = dict(tensors=0, objects=100, resident=8 * 2**20)
#: What mmengine's history of a scalar takes for an iteration: value and count.
BYTES_PER_SCALAR = 16


def resident():
    """Bytes of this process, but for files, in memory or swapped out of it (Linux)."""
    status = Path('/proc/self/status').read_text()
    sizes = dict(re.findall(r'^(\w+):\s+(\d+) kB$', status, re.MULTILINE))
    return 1024 * (int(sizes['RssAnon']) + int(sizes['VmSwap']))


class Measure(Hook):
    """Measures memory, all objects and all tensors after some iterations."""

    priority = 'LOWEST'

    def __init__(self, iterations):
        self.iterations = iterations
        self.measured = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 not in self.iterations:
            return
        gc.collect()
        objects = gc.get_objects()
        self.measured.append(
            dict(
                resident=resident(),
                objects=len(objects),
                tensors=sum(issubclass(type(thing), torch.Tensor) for thing in objects),
                scalars=len(runner.message_hub.log_scalars),
            )
        )


class Leak(Hook):
    """Keeps a tensor, small objects and sixteen megabytes of every iteration from one on."""

    def __init__(self, start):
        self.start, self.kept = start, []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 >= self.start:
            self.kept += [outputs['loss'].detach(), [[] for _ in range(10)], b'.' * 2**24]


def measure(cfg, iterations, leak_from=0):
    """Train and return what was measured after the iterations, by iteration.

    In a process of its own: in another's, freed memory would be there to be used again.
    """
    cfg.dump(f'{cfg.work_dir}.py')
    done = subprocess.run(
        [sys.executable, __file__, f'{cfg.work_dir}.py', *map(str, (leak_from, *iterations))],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(iterations, measured, strict=True))


def main(config, leak_from, *iterations):
    """Train, and print what was measured."""
    runner = Runner.from_cfg(Config.fromfile(config))
    measure = Measure(list(map(int, iterations)))
    runner.register_hook(measure)
    if int(leak_from):
        runner.register_hook(Leak(int(leak_from)))
    runner.train()
    print(json.dumps(measure.measured))


def growth(measured, first, last):
    """What has grown between two iterations, but for mmengine's history of the log."""
    grown = {key: measured[last][key] - measured[first][key] for key in ALLOWED}
    grown['resident'] -= BYTES_PER_SCALAR * measured[last]['scalars'] * (last - first)
    return grown


@pytest.fixture
def measured_cfg(small_cfg):
    """Training, evaluation, images of all images, and checkpoints now and then."""

    def make(folder, iterations, every):
        return small_cfg(folder, **{
            'train_cfg.max_iters': iterations,
            'train_cfg.val_interval': every,
            'default_hooks.checkpoint.interval': every,
            'default_hooks.checkpoint.max_keep_ckpts': 1,
            'default_hooks.logger.interval': 50,
            'default_hooks.visualization.draw': True,
            'default_hooks.visualization.interval': 1,
            'param_scheduler.0.end': iterations,
            # of two small networks the one with the fewer layers, twice
            'model.backbone.networks.bottom': dict(_delete_=True, **BACKBONES['resnet']),
            'model.decode_head.networks.bottom': dict(in_channels=64, low_level_in_channels=8),
        })  # fmt: skip

    return make


@pytest.mark.slow
def test_a_thousand_iterations_need_what_two_hundred_do(measured_cfg, tmp_path):
    run = tmp_path / 'run'
    measured = measure(measured_cfg(run, 1000, every=50), range(200, 1001, 200))
    assert len(list(run.rglob('vis_image/*.png'))) >= 20 * 2
    assert len((run / 'iou.jsonl').read_text().splitlines()) == 20
    for last in (400, 600, 800, 1000):
        grown = growth(measured, 200, last)
        assert all(grown[key] <= ALLOWED[key] for key in ALLOWED), measured


@pytest.mark.slow
def test_leaks_are_noticed(measured_cfg, tmp_path):
    cfg = measured_cfg(tmp_path / 'run', 32, every=10)
    measured = measure(cfg, [12, 18, 32], leak_from=19)
    before, after = growth(measured, 12, 18), growth(measured, 18, 32)
    for key, allowed in ALLOWED.items():
        assert before[key] <= allowed < after[key], (key, measured)


if __name__ == '__main__':
    main(*sys.argv[1:])
