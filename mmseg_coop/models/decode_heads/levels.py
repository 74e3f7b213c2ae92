"""The levels of a feature pyramid that a decode head reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...errors import InputError

#: An argument for channels, with that for the level which has them and the default of the latter.
Reads = dict[str, tuple[str, int]]
#: What every decode head of mmseg reads.
READS: Reads = dict(in_channels=('in_index', -1))


def fill_in_channels(
    reads: Reads, arguments: Mapping[str, Any], channels: Sequence[int], network: str
) -> dict[str, Any]:
    """Complete the arguments of a head.

    Args:
        reads: Arguments for channels, see :data:`Reads`.
        arguments: What the head is given.
        channels: Channels of the levels of the feature pyramid.
        network: Name of the network, for the message.

    Returns:
        The arguments and, where they are left out, the channels; a list of them for a list of
        levels.

    Raises:
        ValueError: A level is missing.
    """
    filled = dict(arguments)
    for key, (index_key, default) in reads.items():
        if filled.get(key) is None:
            index = filled.get(index_key, default)
            indices = index if isinstance(index, Sequence) else [index]
            found = [_at(each, channels, network) for each in indices]
            filled[key] = found if isinstance(index, Sequence) else found[0]
    return filled


def check_levels(expected: Mapping[int, int], channels: Sequence[int], network: str = '') -> None:
    """Compare a feature pyramid with what a head was built for.

    Args:
        expected: Channels by level.
        channels: Channels of all levels of the pyramid.
        network: Name of the network, for the message. Defaults to ''.

    Raises:
        ValueError: A level is missing or has other channels.
    """
    for index, number in expected.items():
        found = _at(index, channels, network)
        # While it is traced, a size is a tensor, and torch would warn about the comparison.
        if not torch.jit.is_tracing() and found != number:
            raise InputError(
                f'the decode head{_of(network)} was built for {number} channels at level {index} '
                f'of the feature pyramid, but the backbone returns {found} there (its levels have '
                f'{[*channels]} channels); change in_channels (low_level_in_channels) or the '
                'index, or leave the channels out: they are found.'
            )


def _at(index: int, channels: Sequence[int], network: str) -> int:
    if not -len(channels) <= index < len(channels):
        raise InputError(
            f'the decode head{_of(network)} takes level {index} of the feature pyramid, but the '
            f'backbone returns {len(channels)} levels; choose an index below that or extend the '
            "backbone's out_indices."
        )
    return channels[index]


def _of(network: str) -> str:
    return f' of network {network!r}' if network else ''
