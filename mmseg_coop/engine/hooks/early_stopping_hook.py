"""Ends a training that no longer improves, also one that was resumed."""

from __future__ import annotations

import mmengine.hooks
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from typing_extensions import override


@HOOKS.register_module()
class ExactEarlyStoppingHook(mmengine.hooks.EarlyStoppingHook):
    """mmengine's ``EarlyStoppingHook``, which counts on in a resumed run.

    The best score and the number of evaluations since are part of the checkpoints, so that a run
    that was killed ends where it would have ended. The end is announced on the console.

    Args:
        monitor: The metric, such as ``'mIoU'`` or ``'ensemble/mIoU'``.
        **kwargs: As of mmengine's hook: ``patience``, the evaluations without an improvement after
            which the run ends (5), ``min_delta``, what is one, in units of the metric (0.1),
            ``stopping_threshold``, ...
    """

    @override
    def before_train(self, runner: Runner) -> None:
        best, waited = runner.message_hub.runtime_info.get('early_stopping', (None, 0))
        if best is not None:
            self.best_score, self.wait_count = float(best), int(waited)

    @override
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        super().after_val_epoch(runner, metrics)
        state = [float(self.best_score), self.wait_count]
        runner.message_hub.update_info('early_stopping', state)
        if runner.train_loop.stop_training:
            runner.logger.info(
                f'The training ends early, at iteration {runner.iter}: {self.monitor} is '
                f'{metrics[self.monitor]:.2f}, the best was {self.best_score:.2f}.',
                extra=dict(on_console=True),
            )
