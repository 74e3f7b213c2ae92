"""Puts the path in the config in front of what a constructor, or a part at work, refuses."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import BaseLoop, TestLoop, ValLoop
from torch._utils import ExceptionWrapper
from torch.distributed import DistBackendError

from ..errors import ConfigError, CoopError
from .parts import find_types, short, walk

#: What says all there is to say, and what no config is to blame for.
_NOT_MEANT = (CoopError, OSError, MemoryError, torch.cuda.OutOfMemoryError, DistBackendError)


@contextmanager
def config_errors(cfg: Mapping[str, Any], path: str = '') -> Iterator[None]:
    """Name the part of the config at which something fails.

    It is the innermost one that is being built, or whose object is at work, where the error comes
    from. An error that comes from none, and one of the memory, of files or of other processes,
    passes unchanged.

    Args:
        cfg: The config that is built or runs.
        path: Dotted path of the part that is to blame if the error shows no other. Defaults to
            ``''``, none.

    Yields:
        Nothing.

    Raises:
        ConfigError: The message gives the dotted path of the part, the keys that are likely at
            fault, and what was said.
    """
    try:
        yield
    except _NOT_MEANT:
        raise
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][2:]
        from_worker = frames and frames[-1].f_code is ExceptionWrapper.reraise.__code__
        if 'CUDA' in str(error) or from_worker:
            raise
        parts = {place: part for key, value in cfg.items() for place, part in walk(value, key)}
        found = _find_part(parts, frames, path)
        if not found:
            raise
        raise ConfigError(_explain(found, parts.get(found, {}), error)) from error


def _find_part(parts: Mapping[str, Any], frames: list[FrameType], path: str) -> str:
    """Path of the part of a config that the innermost of the frames is about."""
    split = ''
    for frame in frames:
        values = frame.f_locals
        choices = []
        if frame.f_code.co_name != '__init__':  # where all arguments are at hand, not one at work
            choices = [_made_of(parts, value) for value in values.values()]
        one = values.get('hook', values.get('self'))  # mmengine raises anew what a hook raises
        if isinstance(one, BaseLoop):
            split = {ValLoop: 'val_', TestLoop: 'test_'}.get(type(one), 'train_')
        elif isinstance(one, Evaluator):
            choices.append([f'{split}evaluator'])
        elif not isinstance(one, BaseOptimWrapper):  # like a loop, it runs all others
            choices.append([p for p in parts if type(one) in find_types(parts[p].get('type'))])
        if split and frame.f_globals.get('__name__', '').startswith('torch.utils.data.'):
            choices.append([f'{split}dataloader'])
        found = set()
        for choice in choices:
            near = [
                [place for place in choice if f'{place}.'.startswith(start)]
                for start in (f'{path}.', split, '')
            ]
            nearest = next(filter(None, near), [])
            found |= set(nearest) if len(nearest) == 1 else set()
        outer = min(found, key=len, default='')
        if outer and all(f'{place}.'.startswith(f'{outer}.') for place in found):
            path = outer
    return path


def _made_of(parts: Mapping[str, Mapping[Any, Any]], value: Any) -> list[str]:
    """Paths of the parts that a list is, or with which a dictionary shares the most values.

    Builders change dictionaries.
    """
    _, value = next(walk(value, ''), ('', {}))
    shared: dict[int, list[str]] = {}
    for place, part in parts.items():
        with suppress(TypeError, ValueError, RuntimeError):  # arrays cannot be compared so
            equal = [key for key in part.keys() & value.keys() if part[key] == value[key]]
            if 0 not in value or len(equal) == len(part) == len(value):
                shared.setdefault(len(equal), []).append(place)
    most = max(shared, default=0)
    return shared[most] if most else []


def _explain(path: str, part: Mapping[Any, Any], error: Exception) -> str:
    """One line: the keys of a part that a message names or whose values it shows, and it."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = re.sub(r'\s+', ' ', str(message)).strip()
    values = {str(key): short(value) for key, value in part.items() if key != 'type'}
    named = {key for key in values if re.search(rf'\b{re.escape(key)}\b', text, re.IGNORECASE)}
    if not named or not isinstance(error, ValueError):  # torch names words rather than keys
        pattern = r'(?<![\w.-]){}(?![\w.])'
        named |= {key for key in values if re.search(pattern.format(re.escape(values[key])), text)}
    keys = ', '.join(f'{path}.{key}={values[key]}' for key in values if key in named)
    target = part.get('type', '')
    name = f' ({getattr(target, "__name__", target)})' if target else ''
    if isinstance(error, ValueError):  # meant for the user
        return f'{keys or path}{name}: {text}'
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = '/'.join(Path(last.filename).parts[-2:])
    return f'{keys or path}{name}: {type(error).__name__}: {text} ({where}, line {last.lineno})'
