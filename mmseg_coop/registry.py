"""The scope ``mmseg_coop``, a child of each of mmseg's registries, and what a type names.

Our classes are registered in mmseg's own registries, where any config of mmseg's finds them. These
children stay empty. mmengine asks them where a config inherits by ``_base_ = 'mmseg_coop::…'``: the
dictionaries from there carry ``_scope_='mmseg_coop'``, and a child finds in its parents what they
name.
"""

from __future__ import annotations

from typing import Any

import mmseg.registry
from mmengine.registry import Registry

# A registry imports its locations before its first look-up, but not those of its parents.
_LOCATIONS = [
    'mmseg.datasets',
    'mmseg.engine',
    'mmseg.evaluation',
    'mmseg.models',
    'mmseg.visualization',
    'mmseg_coop',
]


def _child(parent: Registry) -> Registry:
    return Registry(parent.name, parent=parent, scope='mmseg_coop', locations=_LOCATIONS)


#: The children by the names that :mod:`mmseg.registry` gives their parents, such as ``'MODELS'``.
REGISTRIES: dict[str, Registry] = {
    name: _child(parent)
    for name, parent in vars(mmseg.registry).items()
    if isinstance(parent, Registry)
}


def class_of(part: Any, registry: Registry) -> Any:
    """Class of a part of a config.

    Args:
        part: The part, whose ``type`` is a registered name or the class itself.
        registry: Where the name is looked up.

    Returns:
        The class; None if nothing is registered under the name.
    """
    kind = part.get('type')
    return registry.get(kind) if isinstance(kind, str) else kind
