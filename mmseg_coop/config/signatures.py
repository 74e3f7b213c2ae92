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
from itertools import chain
from numbers import Number
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from mmengine.model import BaseModule
from torch.optim import optimizer

_OWN = 'mmseg_coop'
#: Packages whose annotations are read.
_ANNOTATED = (_OWN, 'mmcv', 'mmengine', 'mmseg', 'torch')
#: How SGD of torch 2.1 says that it needs a number.
_REQUIRED = getattr(optimizer, 'required', object())


class Key(NamedTuple):
    """What is known of an argument."""

    default: Any = inspect.Parameter.empty
    hint: Any = Any
    #: Whether the annotation is meant exactly, see :func:`mismatch`.
    exact: bool = False

    def mismatch(self, value: Any, path: str) -> tuple[str, Any] | None:
        """Where the annotation does not allow a value, see :func:`mismatch`."""
        if value is None and self.default is None:
            return None
        kinds = {kind for kind, _ in _options(self.hint)} - {'other'}
        number = value is None and type(self.default) in (int, float) and kinds == {'number'}
        return mismatch(value, self.hint, exact=self.exact or number, path=path)


class Keys(NamedTuple):
    """What is known of all arguments."""

    known: dict[str, Key]
    #: Whether there are no others.
    complete: bool

    @property
    def required(self) -> set[str]:
        """Those without which there is an error."""
        return {name for name, key in self.known.items() if key.default is inspect.Parameter.empty}


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
    call: Any = None  # of this constructor by the one before
    for cls in target.__mro__ if inspect.isclass(target) else [target]:
        if cls is object:  # takes nothing, unless __new__ does
            return Keys(known, target.__new__ is object.__new__)
        init = vars(cls).get('__init__') if inspect.isclass(cls) else cls
        if init is None:
            continue
        if call and cls is BaseModule:  # where mmseg puts it for a class of mmdet's
            break
        own, kwargs = _parameters(init)
        if call:
            positional = sum(not isinstance(argument, ast.Starred) for argument in call.args)
            for name in [*list(own)[:positional], *(keyword.arg for keyword in call.keywords)]:
                own.pop(name, None)
        known = {**own, **known}
        if kwargs is None:
            return Keys(known, True)
        taken_out, call = _uses(init, kwargs, getattr(cls, '__name__', ''))
        known = {**dict.fromkeys(taken_out, Key(default=None)), **known}
        if call is None:
            break
    return Keys(known, False)


def _parameters(function: Callable) -> tuple[dict[str, Key], str | None]:
    """Parameters of a function, and the name of its ``**kwargs`` if it has them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C
        return {}, 'kwargs'
    package = getattr(function, '__module__', '').partition('.')[0]
    known, kwargs = {}, None
    for parameter in parameters:
        name, hint = parameter.name, Any
        if parameter.kind is parameter.VAR_KEYWORD:
            kwargs = name
        elif parameter.default is _REQUIRED:
            known[name] = Key(0.0, float)
        elif parameter.kind is not parameter.VAR_POSITIONAL and name != 'self':
            if package in _ANNOTATED and parameter.annotation is not parameter.empty:
                annotated = types.SimpleNamespace(__annotations__={name: parameter.annotation})
                with suppress(NameError, TypeError, AttributeError):  # names for type checkers only
                    hint = get_type_hints(annotated, getattr(function, '__globals__', None))[name]
            known[name] = Key(parameter.default, hint, package == _OWN)
    return known, kwargs


def _uses(init: Callable, kwargs: str, class_name: str) -> tuple[list[str], Any]:
    """What a constructor does with its ``**kwargs``.

    Returns:
        The keys that it takes out, and its call of the next constructor with the rest; None if it
        does anything else with them.
    """
    try:
        function: Any = ast.parse(textwrap.dedent(inspect.getsource(init))).body[0]
    except (OSError, TypeError, SyntaxError):
        return [], None
    code = '\n'.join(map(ast.unparse, function.body[ast.get_docstring(function) is not None :]))
    taken_out = re.findall(rf"\b{kwargs}(?:\.(?:get|pop|setdefault)\(|\[)'(\w+)'", code)
    taken_out += re.findall(rf"'(\w+)' (?:not )?in {kwargs}\b", code)
    call = re.search(rf'super\((?:{class_name}, self)?\)\.__init__\((.*)\*\*{kwargs}\)', code)
    if not call or len(re.findall(rf'\b{kwargs}\b', code)) != 1 + len(taken_out):
        return taken_out, None
    return taken_out, ast.parse(f'f({call[1]})', mode='eval').body


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
    options = _options(hint)
    kinds, kind = {option for option, _ in options}, _kind(type(value))
    anything = 'any' in kinds
    if not exact:
        anything |= 'text' in kinds or kinds <= {'other', 'none'}
        kinds |= {'none', *(_CONTAINERS if kinds & _CONTAINERS else ())}
    if not anything and kind not in kinds | {'other'}:
        return path, value
    found: Any = []
    for option, arguments in options:
        if kind == option and kind in _CONTAINERS:
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            hints = {*arguments[kind == 'mapping' :]} - {...}
            inner = (
                mismatch(item, *hints, exact=exact, path=f'{path}.{key}')
                for key, item in (items if len(hints) == 1 else ())
            )
            found.append(next(filter(None, inner), None))
    return None if None in found else next(iter(found), None)


_CONTAINERS = {'mapping', 'sequence'}
#: Kinds of values by what they inherit from; a text is a sequence as well.
_KINDS: dict[Any, str] = {
    types.NoneType: 'none',
    Number: 'number',
    str: 'text',
    Mapping: 'mapping',
    Sequence: 'sequence',
    Set: 'sequence',
}


def _kind(cls: type) -> str:
    return next((kind for base, kind in _KINDS.items() if issubclass(cls, base)), 'other')


def _options(hint: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """Kinds that an annotation allows, with what it says of their items."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return [*chain(*map(_options, arguments))]
    if origin is Literal:
        return [(_kind(type(choice)), ()) for choice in arguments]
    if not inspect.isclass(origin) or origin in (Any, object):
        return [('any', ())]
    return [(_kind(Sequence if origin is Iterable else origin), arguments)]
