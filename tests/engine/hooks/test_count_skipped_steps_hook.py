from __future__ import annotations

import math
import re

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from mmseg_coop.errors import NumericError
from tests.engine import runs
from tests.engine.runs import Toy, logged

pytestmark = pytest.mark.skipif(
    not hasattr(torch.amp, 'GradScaler'),
    reason='before torch 2.3 a GradScaler works with CUDA only',
)


class CpuAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's wrapper with torch's scaler for the CPU, which its constructor refuses."""

    def __init__(self, *, scale=65536.0, growth_interval=2000, **kwargs):
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = None
        self.cast_dtype = torch.bfloat16
        self.loss_scaler = torch.amp.GradScaler(
            'cpu', init_scale=scale, growth_interval=growth_interval
        )


class Faulty(Toy):
    """Its gradients are NaN, or its loss, in the given forward passes."""

    def __init__(self, nan_gradients=(), nan_losses=()):
        super().__init__(8, 4)
        self.nan_gradients, self.nan_losses = nan_gradients, nan_losses

    def change(self, output, loss):
        loss = 100 * loss
        if self.calls in self.nan_gradients:
            loss = loss + (output * 0).sum().sqrt()  # the slope of a root is infinite at 0
        return loss * math.nan if self.calls in self.nan_losses else loss


class Watch(Hook):
    """Notes in which iterations the weights stay as they were."""

    def __init__(self):
        self.still = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = runner.model.layer.weight.detach().clone()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.still.append(bool(runner.model.layer.weight.equal(self.before)))


def train(folder, *, iterations=12, amp=(), fused=False, max_in_a_row=50, watch=(), **model):
    """Train on the CPU; `amp` holds arguments of the wrapper, None is full precision."""
    optimizer = torch.optim.SGD((net := Faulty(**model)).parameters(), lr=1e-5, fused=fused)
    wrapper = OptimWrapper if amp is None else CpuAmpOptimWrapper
    count = dict(type='CountSkippedStepsHook', max_in_a_row=max_in_a_row)
    return runs.train(
        folder,
        net,
        max_iters=iterations,
        hooks=[dict(type='NonFiniteLossHook'), count, *watch],
        optim_wrapper=wrapper(optimizer=optimizer, **dict(amp or {})),
    )


@pytest.mark.parametrize('fused', [False, True])
def test_steps_skipped_until_the_scale_fits_are_counted(fused, tmp_path):
    watch = Watch()
    runner = train(tmp_path, amp=dict(scale=2.0**127), fused=fused, watch=[watch])
    skipped = sum(watch.still)
    assert 2 <= skipped <= 10
    counts = runner.message_hub.get_scalar('train/amp_skipped').data[0].tolist()
    assert counts == [sum(watch.still[: i + 1]) for i in range(12)]
    seen = re.findall(r'Iter\(train\) .*amp_skipped: (\d+)', logged(tmp_path))
    assert list(map(int, seen)) == counts
    assert f'mixed precision skipped {skipped} of 12 steps' in logged(tmp_path)


def test_a_growing_scale_hides_no_skipped_step(tmp_path):
    """After each step the scale doubles, until a gradient overflows and it is halved."""
    watch = Watch()
    amp = dict(scale=2.0**120, growth_interval=1)
    runner = train(tmp_path, iterations=30, amp=amp, watch=[watch])
    assert sum(watch.still) >= 5
    assert runner.message_hub.get_info('amp_steps') == (30, sum(watch.still))


@pytest.mark.parametrize('iterations', [12, 13])
def test_with_accumulation_steps_are_counted_not_iterations(iterations, tmp_path):
    # Of iterations 1 to 3, 4 to 6, ... each makes one step; the second and the fourth are skipped.
    # A thirteenth iteration makes a step of its own, as the last one.
    runner = train(
        tmp_path,
        iterations=iterations,
        amp=dict(accumulative_counts=3),
        nan_gradients=(5, 10, 11),
    )
    steps = math.ceil(iterations / 3)
    assert runner.message_hub.get_info('amp_steps') == (steps, 2)
    assert f'mixed precision skipped 2 of {steps} steps' in logged(tmp_path)


def test_a_resumed_run_continues_the_count(tmp_path):
    train(tmp_path, iterations=6, nan_gradients=(2, 4))
    runner = train(tmp_path, iterations=12, nan_gradients=(3,))
    assert runner.message_hub.get_info('amp_steps') == (12, 3)
    counts = runner.message_hub.get_scalar('train/amp_skipped').data[0].tolist()
    assert counts == [0, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3]


def test_too_many_in_a_row_end_the_training(tmp_path):
    with pytest.raises(NumericError) as stopped:
        train(tmp_path, max_in_a_row=4, nan_gradients=(2, 4, 5, 6, 7, 8))
    said = str(stopped.value)
    assert said.startswith('Up to iteration 7 the gradients of 4 steps in a row were not finite')
    assert 'the scale of the loss is 2048.' in said  # halved five times
    assert f'The last good checkpoint is {tmp_path / "iter_6.pth"}.' in said
    assert 'clip_grad.max_norm=1 or optim_wrapper.dtype=bfloat16 or full precision' in said
    assert not (tmp_path / 'iter_7.pth').exists()


def test_a_loss_that_is_not_finite_is_not_left_to_the_scaler(tmp_path):
    with pytest.raises(NumericError, match=r'The loss of iteration 3 .* full precision'):
        train(tmp_path, nan_losses=(3,))


def test_going_on_in_full_precision(tmp_path):
    train(tmp_path, iterations=3, nan_gradients=(2,))
    runner = train(tmp_path, iterations=6, amp=None)
    assert runner.iter == 6
    assert len(runner.message_hub.get_scalar('train/amp_skipped').data[0]) == 3


def test_without_mixed_precision_nothing_is_said(tmp_path):
    runner = train(tmp_path, amp=None)
    assert 'train/amp_skipped' not in runner.message_hub.log_scalars
    assert 'mixed precision' not in logged(tmp_path)
