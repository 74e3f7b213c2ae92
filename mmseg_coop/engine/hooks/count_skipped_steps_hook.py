"""Counts the steps that mixed precision skips."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch.optim import Optimizer
from typing_extensions import override

from ...errors import NumericError
from ..numeric_fault import recovery_hint


@HOOKS.register_module()
class CountSkippedStepsHook(Hook):
    """Counts the optimizer steps that mixed precision skips, their gradients not being finite.

    torch's ``GradScaler`` says nothing of them. The first few are normal, as it starts with a scale
    of 65536 and halves it until the gradients fit. The count so far is logged as ``amp_skipped``;
    a resumed run continues it. Without ``AmpOptimWrapper`` the hook does nothing.

    A step is an update of the weights: with ``accumulative_counts=4`` there is one in four
    iterations. Nothing is fetched from the device for the count, except with a fused optimizer,
    which decides there.

    Args:
        max_in_a_row: So many skipped steps in a row end the training: a scale halved so often is
            not what makes gradients overflow, and nothing is learned any more. Defaults to 50.

    Raises:
        NumericError: If too many steps in a row were skipped.
    """

    priority = 'HIGH'  # before the log is written

    def __init__(self, *, max_in_a_row: int = 50) -> None:
        self.max_in_a_row = max_in_a_row
        self._steps = self._skipped = self._in_a_row = 0
        self._taken = False

    @override
    def before_train(self, runner: Runner) -> None:
        if not isinstance(runner.optim_wrapper, AmpOptimWrapper):
            return
        self._steps, self._skipped = runner.message_hub.get_info('amp_steps', (0, 0))
        # The scaler leaves `step` out; a fused optimizer has it called and looks for itself.
        runner.optim_wrapper.optimizer.register_step_post_hook(self._note_step)

    def _note_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        found_inf = getattr(optimizer, 'found_inf', None)
        self._taken = found_inf is None or not found_inf.item()

    @override
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, AmpOptimWrapper) or not wrapper.should_update():
            return
        taken, self._taken = self._taken, False
        self._steps += 1
        self._skipped += not taken
        self._in_a_row = 0 if taken else self._in_a_row + 1
        runner.message_hub.update_info('amp_steps', (self._steps, self._skipped))
        runner.message_hub.update_scalar('train/amp_skipped', self._skipped)
        if self._in_a_row >= self.max_in_a_row:
            raise NumericError(
                f'Up to iteration {runner.iter + 1} the gradients of {self._in_a_row} steps in a '
                'row were not finite, and mixed precision skipped them all; the scale of the loss '
                f'is {wrapper.loss_scaler.get_scale():.4g}. '
                + recovery_hint(runner, runner.message_hub.get_info('last_ckpt'))
            )

    @override
    def after_train(self, runner: Runner) -> None:
        if isinstance(runner.optim_wrapper, AmpOptimWrapper):
            runner.logger.info(
                f'mixed precision skipped {self._skipped} of {self._steps} steps, whose gradients '
                'were not finite'
            )
