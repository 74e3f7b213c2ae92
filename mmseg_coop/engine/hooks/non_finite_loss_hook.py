"""Stops a training whose loss is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from typing_extensions import override

from ...errors import NumericError
from ..numeric_fault import recovery_hint


def _files(data_batch: Any) -> Iterator[str]:
    samples = data_batch.get('data_samples', []) if isinstance(data_batch, dict) else []
    for sample in samples:
        yield str(getattr(sample, 'img_path', 'an image without img_path'))


@HOOKS.register_module(name=['NonFiniteLossHook', 'CheckLossHook'])  # of older configs
class NonFiniteLossHook(Hook):
    """Stops at the first iteration whose loss is infinite or NaN, and names the images.

    It acts before the weights of that iteration reach a moving average, a log or a checkpoint. What
    it reads mmengine's ``RuntimeInfoHook`` has already fetched from the device, so it waits for
    nothing.

    Mixed precision is no exception. Its scaler skips steps whose *gradients* overflow, which is
    normal while it looks for a scale, and which :class:`CountSkippedStepsHook` counts. The loss is
    taken before it is scaled; if that is not finite, the forward pass has overflowed, and the
    running statistics of batch normalisation may have taken it in although the step is skipped.

    In a distributed run a process looks at its own loss only and ends; ending the others, which
    wait for it, is up to the launcher, as torchrun and ``srun --kill-on-bad-exit`` do.

    Raises:
        NumericError: If a value whose name has ``loss`` in it is not finite.
    """

    priority = 'HIGH'  # after RuntimeInfoHook, before all others

    @override
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        hub = runner.message_hub
        values = {name: hub.get_scalar(f'train/{name}').current() for name in outputs or {}}
        if all(math.isfinite(value) for name, value in values.items() if 'loss' in name):
            return
        rank = f' on rank {get_rank()}' if get_world_size() > 1 else ''
        rates = sorted({rate for group in runner.optim_wrapper.get_lr().values() for rate in group})
        raise NumericError(
            f'The loss of iteration {runner.iter + 1} is not finite{rank}: '
            + ', '.join(f'{name} {value:.4g}' for name, value in values.items())
            + f'; learning rate {", ".join(f"{rate:.4g}" for rate in rates)}; '
            + f'images {", ".join(_files(data_batch)) or "unknown"}. '
            + recovery_hint(runner, hub.get_info('last_ckpt'))
        )
