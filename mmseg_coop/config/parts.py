"""What the checks of a config share: its parts, and what their types stand for."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from ..registry import REGISTRIES

SPLITS = ('train', 'val', 'test')
#: Scopes whose classes are known; what stands in others is left alone.
OUR_SCOPES = ('mmseg', 'mmseg_coop', 'mmengine')


def walk(part: Any, path: str) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Find all dictionaries and lists in a part of a config, itself included.

    Args:
        part: The part.
        path: Its dotted path.

    Yields:
        Dotted path and dictionary, the outer ones before the inner ones; of a list, one of its
        items by index. Those of other scopes than mmseg's are left out with all that is in them.
    """
    part = dict(enumerate(part)) if isinstance(part, (list, tuple)) else part
    if isinstance(part, Mapping) and part.get('_scope_', 'mmseg') in OUR_SCOPES:
        yield path, part
        for key, value in part.items():
            yield from walk(value, f'{path}.{key}')


def find_types(name: Any) -> list[Any]:
    """Find what a ``type`` may stand for.

    Args:
        name: A registered name, or the class itself.

    Returns:
        What the registries hold under the name; several if it is registered more than once.
    """
    if not isinstance(name, str):
        return [name] if callable(name) else []
    found: list[Any] = []
    for registry, registered in zip(REGISTRIES.values(), _registered(), strict=True):
        # Registry.get would go on to look for a module of that name
        target = registry.get(name) if '.' in name else registered.get(name)
        if target is not None and target not in found:
            found.append(target)
    return found


@cache
def _registered() -> list[Mapping[str, Any]]:
    """What the registries hold by its name; what is registered later comes in as well."""
    tables: list[Mapping[str, Any]] = []
    for registry in REGISTRIES.values():
        for node in (registry.parent, registry.root):
            node.import_from_location()
        tables.append(ChainMap(registry.parent.module_dict, registry.root.module_dict))
    return tables


def registered_names() -> set[str]:
    """All names that a ``type`` may have."""
    return set().union(*_registered())


def short(value: Any) -> str:
    """A value for a message, cut to a length that one can read."""
    text = repr(value)
    return text if len(text) < 60 else text[:57] + '...'
