"""What the attention modules share: their precision and the checks of what they are given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


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


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise a ValueError unless the argument ``name`` has one of ``choices`` as its ``value``."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f'{name}={value!r} is unknown; choose one of {choices}.')


def check_positive(name: str, value: object) -> None:
    """Raise a ValueError unless the argument ``name`` has a positive integer as its ``value``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f'{name}={value!r} is not a positive integer; give a number from 1 on.')


def check_all_positive(name: str, values: object, example: str) -> None:
    """Raise a ValueError unless ``name`` has a sequence of positive integers, at least one."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(
            f'{name}={values!r} holds no numbers; give at least one, such as {example}.'
        )
    for value in values:
        check_positive(f'{name}={values!r}: item', value)


def check_fraction(name: str, value: object) -> None:
    """Raise a ValueError unless the argument ``name`` has a number from 0 to 1 as its ``value``."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f'{name}={value!r} is no fraction; give a number from 0 to 1.')


def check_channels(module: str, x: Tensor, in_channels: int) -> None:
    """Raise a ValueError unless ``x`` has the channels that ``module`` was built for."""
    # The old ONNX exporter records sizes as tensors, which would warn about the comparison.
    if not torch.jit.is_tracing() and x.shape[1] != in_channels:
        raise ValueError(
            f'{module} was built for in_channels={in_channels} but got a map with {x.shape[1]} '
            f'channels, shape {tuple(x.shape)}; set in_channels to that number.'
        )
