"""Says which part of a config could not be built, in one line instead of a traceback."""

from __future__ import annotations

import os.path as osp
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.model import BaseModel
from mmengine.registry.build_functions import build_from_cfg
from torch import nn

from ..errors import ConfigError, CoopError
from .check import find_types, unknown_type
from .signatures import Key, constructor_keys, fits

#: What constructors raise over an argument. A full memory or a lost connection is none of it.
_CAUSES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def config_errors(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Name the part of the config where building it fails, or what does not fit the model.

    An error that comes neither out of a constructor nor from such a check passes unchanged.

    Args:
        cfg: The config that is built, or that a run builds before it starts.

    Yields:
        Nothing.

    Raises:
        ConfigError: A part cannot be built, and the message gives its dotted path, the keys that
            are likely at fault and what the constructor said; or a convolution of another package's
            model was not built for the channels that it gets.
    """
    try:
        yield
    except CoopError:
        raise
    except _CAUSES as error:
        part = _failed_part(cfg, error)
        text = _explain(*part, error) if part else _wrong_channels(error)
        if not text:
            raise
        raise ConfigError(text) from error


def _failed_part(cfg: Mapping[str, Any], error: BaseException) -> tuple[str, Any] | None:
    """Path and content of the innermost part of the config that was being built."""
    being_built = [
        frame.f_locals.get('cfg')
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code is build_from_cfg.__code__
    ]
    parts = [part for key, value in cfg.items() for part in _parts(value, key)]
    for built in reversed(being_built):
        if not isinstance(built, Mapping):
            continue
        alike = [(_likeness(part, built), path, part) for path, part in parts]
        best = max(alike, key=lambda entry: entry[0], default=(0, '', None))
        if best[0]:
            return best[1], best[2]
    return None


def _wrong_channels(error: BaseException) -> str:
    """What a convolution of the model says of the channels that it gets, and which one it is."""
    found = re.search(r'to have (\d+) channels, but got (\d+) channels', str(error))
    modules = [
        module
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if isinstance(module := frame.f_locals.get('self'), nn.Module)
    ]
    model = next((module for module in modules if isinstance(module, BaseModel)), None)
    names = {module: name for name, module in model.named_modules()} if model else {}
    if not found or not modules or modules[-1] not in names:
        return ''
    return (
        f'model.{names[modules[-1]]} was built for {found[1]} channels, but gets {found[2]}; '
        'change in_channels (or in_index) of the part that it belongs to.'
    )


def _parts(part: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    items: Any = ()
    if isinstance(part, Mapping):
        yield path, part
        items = part.items()
    elif isinstance(part, (list, tuple)):
        items = enumerate(part)
    for key, value in items:
        yield from _parts(value, f'{path}.{key}')


def _likeness(part: Mapping[str, Any], built: Mapping[str, Any]) -> int:
    """How much of a part of the config is in what was built; 0 if it is another one.

    Builders add arguments and take some away, but change none.
    """
    if part.get('type') != built.get('type') or 'type' not in part:
        return 0
    shared = [key for key in part if key in built]
    if any(part[key] is not built[key] and part[key] != built[key] for key in shared):
        return 0
    return len(shared)


def _explain(path: str, part: Mapping[str, Any], error: Exception) -> str:
    name = part['type'] if isinstance(part['type'], str) else getattr(part['type'], '__name__', '')
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = re.sub(r'\s+', ' ', str(message)).strip()
    targets = find_types(part['type'])
    if not targets:
        return str(unknown_type(path, name))
    suspects = _suspects(part, targets[0], text)
    keys = ', '.join(f'{path}.{key}={_short(part[key])}' for key in suspects)
    if isinstance(error, ValueError):  # meant for the user
        return f'{keys or path} ({name}): {text}'
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f'{osp.basename(osp.dirname(last.filename))}/{osp.basename(last.filename)}'
    return (
        f'{keys or path} cannot be built: {name} raised {type(error).__name__}: {text} '
        f'({where}, line {last.lineno})'
    )


def _suspects(part: Mapping[str, Any], target: Any, message: str) -> list[str]:
    """Keys that the message names, or else whose values are of another sort than the default."""
    keys = [key for key in part if key not in ('type', '_scope_', '_delete_')]
    named = [key for key in keys if re.search(rf'\b{re.escape(key)}\b', message, re.IGNORECASE)]
    if named:
        return named
    known = constructor_keys(target).known
    odd = [key for key in keys if _is_odd(part[key], known.get(key, Key()))]
    shown = [key for key in odd if _short(part[key]) in message]
    return shown or odd or [key for key in keys if not _is_positive(part[key])]


def _is_odd(value: Any, key: Key) -> bool:
    """Whether a value is of another sort than the default, or than the annotation says."""
    if isinstance(value, Mapping) and None in value.values():
        return True
    if not fits(value, key.hint, strict=True) and not (value is None and key.default is None):
        return True
    if isinstance(key.default, bool):
        return not isinstance(value, int)
    if isinstance(key.default, (int, float, str, list, tuple, dict)):
        return value is None or not fits(value, type(key.default), strict=False)
    return isinstance(value, str)


def _is_positive(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(_is_positive(item) for item in value)
    return not isinstance(value, (int, float)) or value > 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + '...'
