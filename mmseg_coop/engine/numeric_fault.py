"""What a run says when its numbers are no longer finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner


def _is_finite(tensor: torch.Tensor) -> bool:
    # The sum is quick, and finite only if all numbers are; that of finite ones may overflow.
    return bool(tensor.sum().isfinite() or tensor.isfinite().all())


def non_finite(state: Any, name: str = '') -> Iterator[str]:
    """Name the tensors with infinite values or NaN in nested containers.

    Args:
        state: Dicts, lists and tuples of anything.
        name: What to call it. Defaults to nothing.

    Yields:
        Names, their parts joined by dots.

    Examples:
        >>> nan = torch.tensor([1, float('nan')])
        >>> list(non_finite(dict(layer=dict(weight=nan, bias=torch.ones(2)), lr=float('inf'))))
        ['layer.weight']
    """
    if isinstance(state, dict):
        for key, value in state.items():
            yield from non_finite(value, f'{name}.{key}' if name else str(key))
    elif isinstance(state, (list, tuple)):
        for number, value in enumerate(state):
            yield from non_finite(value, f'{name}.{number}')
    elif isinstance(state, torch.Tensor) and not _is_finite(state):
        yield name


def recovery_hint(runner: Runner, last: str | None) -> str:
    """Say where a faulty run can go on, and what then has to be different.

    Args:
        runner: The runner.
        last: The last good checkpoint, if there is one.

    Returns:
        Sentences.
    """
    changes = ['optim_wrapper.clip_grad.max_norm=1']
    if isinstance(runner.optim_wrapper, AmpOptimWrapper):
        changes += ['optim_wrapper.dtype=bfloat16', 'full precision']
    change = ' or '.join(changes)
    if last is None:
        return (
            'No checkpoint has been written yet; start anew with a lower '
            f'optim_wrapper.optimizer.lr or {change}.'
        )
    return (
        f'The last good checkpoint is {last}. Going on with --resume alone would repeat the fault; '
        f'with {change} it may not. A lower optim_wrapper.optimizer.lr needs a new run with '
        f'load_from={last}, as --resume restores the former rate.'
    )
