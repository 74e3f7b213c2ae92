"""Which arguments a constructor takes, as far as its code says so."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from functools import cache
from numbers import Number
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from mmengine.model import BaseModule
from torch.optim import optimizer

_OWN = 'mmseg_coop'
_REQUIRED = getattr(optimizer, 'required', object())
#: Packages whose annotations are read.
_ANNOTATED = (_OWN, 'mmcv', 'mmengine', 'mmseg', 'torch')


class Key(NamedTuple):
    """What is known of an argument."""

    default: Any = inspect.Parameter.empty
    hint: Any = Any
    #: The annotation as it is written.
    text: str = ''
    #: Whether it is meant exactly, see :func:`mismatch`.
    exact: bool = False

    def mismatch(self, value: Any, path: str = '') -> tuple[str, Any] | None:
        """Where the annotation does not allow a value, see :func:`mismatch`."""
        if value is None and type(self.default) in (int, float):
            return (path, value) if _kinds(self.hint) - {'other'} == {'number'} else None
        by_default = value is None and self.default is None
        return None if by_default else mismatch(value, self.hint, exact=self.exact, path=path)


class Keys(NamedTuple):
    """What is known of all arguments."""

    known: dict[str, Key]
    #: Whether there are no others.
    complete: bool
    #: Those without which there is an error.
    required: frozenset[str] = frozenset()


@cache
def constructor_keys(target: Any) -> Keys:
    """Find the keyword arguments of a class or function.

    A constructor with ``**kwargs`` may hand them to the next class. Its code is read: only if all
    it does with them is that, or to take single keys out, the answer is complete.

    Args:
        target: The class or function.

    Returns:
        Its arguments.
    """
    known: dict[str, Key] = {}
    required: set[str] = set()
    use = _Use()
    for cls in target.__mro__ if inspect.isclass(target) else [target]:
        init = cls.__dict__.get('__init__') if inspect.isclass(cls) else cls
        if init is None:
            continue
        if cls is BaseModule and use.forwards:  # where mmseg puts it for a class of mmdet's
            break
        own, kwargs = _parameters(init)
        passed = {*known, *list(own)[: use.positional], *use.named}
        own = {name: key for name, key in own.items() if name not in passed}
        required |= {name for name, key in own.items() if key.default is inspect.Parameter.empty}
        known |= own
        if kwargs is None:
            # object takes nothing, unless __new__ does
            complete = cls is not object or target.__new__ is object.__new__
            return Keys(known, complete, frozenset(required))
        use = _use_of(init, kwargs, cls.__name__)
        known |= {name: Key(default=None) for name in use.taken_out if name not in known}
        if not use.forwards:
            break
    return Keys(known, False, frozenset(required))


def _parameters(function: Callable) -> tuple[dict[str, Key], str | None]:
    """Parameters of a function, and the name of its ``**kwargs`` if it has them."""
    if function is object.__init__:
        return {}, None
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return {}, 'kwargs'
    package = getattr(function, '__module__', '').partition('.')[0]
    known, kwargs = {}, None
    for parameter in parameters:
        name, text = parameter.name, parameter.annotation
        if parameter.kind is parameter.VAR_KEYWORD:
            kwargs = name
        elif parameter.kind is not parameter.VAR_POSITIONAL and name != 'self':
            hints: dict[str, Any] = {}
            if package in _ANNOTATED:
                annotated = types.SimpleNamespace(__annotations__={name: text})
                with suppress(NameError, TypeError, AttributeError):  # names for type checkers only
                    hints = get_type_hints(annotated, getattr(function, '__globals__', None))
            text = text if isinstance(text, str) else inspect.formatannotation(text)
            key = Key(parameter.default, hints.get(name, Any), text, package == _OWN)
            # how SGD of torch 2.1 says that it needs a number
            known[name] = Key(0.0, float, 'float') if key.default is _REQUIRED else key
    return known, kwargs


class _Use(NamedTuple):
    """How a constructor hands its ``**kwargs`` on to the next class."""

    #: Whether it does, and does nothing else with them but to take keys out.
    forwards: bool = False
    taken_out: tuple[str, ...] = ()
    #: How many arguments it passes beside them by position, and which by name.
    positional: int = 0
    named: tuple[str, ...] = ()


def _use_of(init: Callable, kwargs: str, class_name: str) -> _Use:
    try:
        function: Any = ast.parse(textwrap.dedent(inspect.getsource(init))).body[0]
    except (OSError, TypeError, SyntaxError):
        return _Use()
    body = function.body[ast.get_docstring(function) is not None :]
    code = '\n'.join(map(ast.unparse, body))
    call = re.search(rf'super\((?:{class_name}, self)?\)\.__init__\((.*)\*\*{kwargs}\)', code)
    taken_out = re.findall(rf"\b{kwargs}(?:\.(?:get|pop|setdefault)\(|\[)'(\w+)'", code)
    taken_out += re.findall(rf"'(\w+)' (?:not )?in {kwargs}\b", code)
    if not call or len(re.findall(rf'\b{kwargs}\b', code)) != 1 + len(taken_out):
        return _Use()
    passed: Any = ast.parse(f'f({call[1]})', mode='eval').body
    positional = sum(not isinstance(argument, ast.Starred) for argument in passed.args)
    named = tuple(keyword.arg for keyword in passed.keywords)
    return _Use(True, tuple(taken_out), positional, named)


def mismatch(value: Any, hint: Any, *, exact: bool, path: str = '') -> tuple[str, Any] | None:
    """Find where an annotation does not allow the kind of a value of a config. In doubt it does.

    The kinds are numbers, texts, mappings, sequences and None; which number or text it is, is left
    to those that take it.

    Args:
        value: The value.
        hint: The annotation.
        exact: Whether it is meant exactly. Annotations of other projects are rarely: None always
            fits, mappings and sequences are not told apart, and one that allows a text allows
            anything.
        path: Dotted path of the value. Defaults to ``''``.

    Returns:
        Path and value of what it does not allow, an item of a container for example, or None.
    """
    kinds, kind, containers = _kinds(hint), _kind(value), {'mapping', 'sequence'}
    if not exact:
        anything = 'text' in kinds or kinds <= {'other', 'none'}
        kinds = set() if anything else kinds | {'none'}
        kinds |= containers if kinds & containers else set()
    if kinds and kind not in kinds | {'other'}:
        return path, value
    options = get_args(hint) if get_origin(hint) in _UNIONS else (hint,)
    found = []
    for option in options:
        if kind in _kinds(option) & containers:
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            hints = {*get_args(option)[kind == 'mapping' :]} - {...}
            inner = (
                mismatch(item, *hints, exact=exact, path=f'{path}.{key}')
                for key, item in (items if len(hints) == 1 else ())
            )
            found.append(next(filter(None, inner), None))
    return None if None in found else next(iter(found), None)


_UNIONS = (Union, types.UnionType)


def _kind(value: Any) -> str:
    return next(iter(_kinds(type(value))), 'other')


def _kinds(hint: Any) -> set[str]:
    """Kinds of the values that an annotation allows; none if that is not known."""
    origin = get_origin(hint) or hint
    if origin in _UNIONS:
        kinds = [_kinds(arg) for arg in get_args(hint)]
        return set().union(*kinds) if all(kinds) else set()
    if origin is Literal:
        return {_kind(choice) for choice in get_args(hint)}
    if not inspect.isclass(origin) or origin in (Any, object):
        return set()
    # Sequence and Iterable may be meant to hold texts, but then they take one by mistake only.
    bases: dict[Any, str] = {
        types.NoneType: 'none',
        Number: 'number',
        str: 'text',
        Mapping: 'mapping',
    }
    bases |= dict.fromkeys((Sequence, Set, origin if origin is Iterable else Set), 'sequence')
    return {next((kind for base, kind in bases.items() if issubclass(origin, base)), 'other')}
