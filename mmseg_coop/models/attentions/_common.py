"""What the attention modules share: their precision and the check of the maps they are given."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ...errors import InputError


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """Switch autocast off, so that products stay in the precision of their factors.

    Args:
        device_type: Type of the device, such as ``'cuda'``.

    Returns:
        The context. It does nothing on a device that knows no autocast, such as ``'meta'``.
    """
    # torch < 2.4 cannot be asked; it knows autocast on these two anyway.
    available = getattr(torch.amp, 'is_autocast_available', None)
    if device_type in ('cpu', 'cuda') or (available is not None and available(device_type)):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or as it is where it is already that precise."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve in the precision of the weights, but return what is precise enough for a product."""
    return at_least_float32(conv(x.to(conv.weight.dtype)))


def check_map(module: str, x: Tensor, in_channels: int | None = None) -> None:
    """Raise an InputError unless ``x`` is a map with the channels that ``module`` was built for."""
    if x.ndim != 4:
        raise InputError(
            f'{module} takes maps (N, C, H, W) but got {x.ndim} dimensions, shape '
            f'{tuple(x.shape)}; a single map needs x.unsqueeze(0), a sequence its height and width.'
        )
    # The old ONNX exporter records sizes as tensors, which would warn about the comparison.
    if in_channels and not torch.jit.is_tracing() and x.shape[1] != in_channels:
        raise InputError(
            f'{module} was built for in_channels={in_channels} but got a map with {x.shape[1]} '
            f'channels, shape {tuple(x.shape)}; set in_channels to that number.'
        )
