"""Mixed precision in bfloat16, which needs no scale of the loss and no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPERS
from torch import nn
from typing_extensions import override

from .precision import warn_if_slow


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """mmengine's ``OptimWrapper`` around a forward pass that autocasts to bfloat16.

    bfloat16 has the range of float32, so gradients neither overflow nor vanish, and nothing has to
    be scaled, as mmengine's ``AmpOptimWrapper`` does for float16. Weights, their gradients and the
    optimizer's state stay float32. It works on the CPU as well, which that wrapper refuses; where
    the device only emulates bfloat16, that is said.

    Args:
        **kwargs: As of ``OptimWrapper``: ``optimizer``, ``accumulative_counts``, ``clip_grad``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        device = self.optimizer.param_groups[0]['params'][0].device
        warn_if_slow(torch.bfloat16, device)
        self._device_type = device.type

    @contextmanager
    @override
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        autocast = torch.autocast(self._device_type, dtype=torch.bfloat16)
        with super().optim_context(model), autocast:
            yield
