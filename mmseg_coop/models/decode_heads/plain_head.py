"""Lets decode heads that know nothing of cooperation take part in it, by the levels they read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor

from ..cooperation import Steps

#: What a head with other outputs than a map of logits has of its own.
_METHODS = ('loss', 'loss_by_feat', 'predict', 'predict_by_feat')


def is_plain(head: Any) -> bool:
    """Tell whether a class is a decode head of mmseg that returns a map of logits, and only that.

    Args:
        head: The class.

    Returns:
        Whether it is.
    """
    return (
        inspect.isclass(head)
        and issubclass(head, BaseDecodeHead)
        and all(getattr(head, name) is getattr(BaseDecodeHead, name) for name in _METHODS)
    )


def why_not_plain(head: Any) -> str:
    """Say what a class is, or has, for which :func:`is_plain` does not hold."""
    if not inspect.isclass(head):
        return 'is not registered'
    if not issubclass(head, BaseDecodeHead):
        return 'has other outputs than one map of logits'
    if issubclass(head, BaseCascadeDecodeHead):
        return 'refines the output of another head'
    own = [name for name in _METHODS if getattr(head, name) is not getattr(BaseDecodeHead, name)]
    return f'has outputs of its own (in {", ".join(own)}) beside or in place of one map of logits'


def levels_read(head: BaseDecodeHead, arguments: Mapping[str, Any]) -> dict[int, int]:
    """Find the levels that a plain head reads.

    Args:
        head: The head.
        arguments: What it was built with.

    Returns:
        Channels by level, in the head's order.
    """
    channels = arguments['in_channels']
    if isinstance(head.in_index, int):
        return {head.in_index: channels}
    return dict(zip(head.in_index, channels, strict=True))


def plain_steps(
    head: BaseDecodeHead, inputs: Sequence[Tensor], site: str, levels: Sequence[int]
) -> Steps:
    """Run a plain head as a generator, see :class:`CooperativeDecodeHead`.

    Args:
        head: The head.
        inputs: Feature pyramid, each ``(N, C_i, H_i, W_i)``.
        site: Name of the site.
        levels: Levels that the head offers there.

    Yields:
        ``(site, level)``; it is sent the level with which it goes on.

    Returns:
        The logits, ``(N, num_classes, H, W)``.
    """
    inputs = list(inputs)
    for level in levels:
        inputs[level] = yield site, inputs[level]
    return head(inputs)
