"""What networks may be called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The name of the sum of all networks' outputs; no network may be called so.
ENSEMBLE = 'ensemble'


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
