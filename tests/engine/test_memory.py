"""A long training needs no more memory than a short one."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

#: Between two iterations. Of one thing kept in each iteration there would be 1600.
ALLOWED = dict(tensors=0, objects=100, resident=8 * 2**20)
#: What mmengine's history of a scalar takes for an iteration: value and count.
BYTES_PER_SCALAR = 16


def resident():
    """Bytes of this process that are in memory (Linux)."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


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


def measure(cfg, iterations, hooks=()):
    """Train and return what was measured after the iterations, by iteration."""
    runner = Runner.from_cfg(cfg)
    measure = Measure(iterations)
    for hook in (measure, *hooks):
        runner.register_hook(hook)
    runner.train()
    return dict(zip(iterations, measure.measured, strict=True))


def growth(measured, first, last):
    """What has grown between two iterations, but for mmengine's history of the log."""
    grown = {key: measured[last][key] - measured[first][key] for key in ALLOWED}
    grown['resident'] -= BYTES_PER_SCALAR * measured[last]['scalars'] * (last - first)
    return grown


@pytest.fixture
def measured_cfg(small_cfg):
    """Training, evaluation, pictures of all images, and checkpoints now and then."""

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
        })  # fmt: skip

    return make


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_iterations_need_what_four_hundred_do(measured_cfg, tmp_path):
    run = tmp_path / 'run'
    measured = measure(measured_cfg(run, 2000, every=100), range(400, 2001, 400))
    assert len(list(run.rglob('vis_image/*.png'))) >= 20 * 2
    assert len((run / 'iou.jsonl').read_text().splitlines()) == 20
    for last in (800, 1200, 1600, 2000):
        grown = growth(measured, 400, last)
        assert all(grown[key] <= ALLOWED[key] for key in ALLOWED), measured


def test_leaks_are_noticed(measured_cfg, tmp_path):
    cfg = measured_cfg(tmp_path / 'run', 32, every=10)
    measured = measure(cfg, [12, 18, 32], [Leak(19)])
    before, after = growth(measured, 12, 18), growth(measured, 18, 32)
    for key, allowed in ALLOWED.items():
        assert before[key] <= allowed < after[key], (key, measured)
