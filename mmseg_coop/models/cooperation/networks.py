"""What networks may be called, and what they say together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

#: The name of the output of all networks together; no network may be called so.
ENSEMBLE = 'ensemble'


def ensemble_of(seg_logits: Collection[Tensor], *, mean: bool) -> Tensor:
    """Let networks decide together.

    Args:
        seg_logits: The logits of each, ``(N, C, H, W)``.
        mean: Whether to divide their sum by their number.

    Returns:
        Logits, ``(N, C, H, W)``.
    """
    total: Any = sum(seg_logits)
    return total / len(seg_logits) if mean else total


def check_network_names(networks: Mapping[str, Any]) -> None:
    """Reject names that cannot serve as a network's name.

    Args:
        networks: Networks by name.

    Raises:
        ValueError: There is no network, or a name is no identifier or stands for the ensemble.
    """
    if not networks:
        raise ValueError('networks is empty; name at least one network.')
    for name in networks:
        if not str(name).isidentifier() or name in (ENSEMBLE, 'all'):
            raise ValueError(
                f'{name!r} cannot name a network; use a Python identifier other than '
                f"{ENSEMBLE!r} and 'all', which stand for the outputs."
            )
