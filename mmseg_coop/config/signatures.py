"""Which keys a constructor takes, as far as its code says so."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from numbers import Number
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from mmengine.model import BaseModule

#: Packages whose annotations are taken by their kind; those of this project are taken literally.
_ANNOTATED = ('mmcv', 'mmengine', 'mmseg', 'torch')
_OWN = 'mmseg_coop'


class Key(NamedTuple):
    """What is known of an argument."""

    default: Any = inspect.Parameter.empty
    hint: Any = Any
    #: The annotation as it is written.
    text: str = ''
    #: Whether the annotation is meant literally.
    strict: bool = False

    def takes(self, value: Any) -> bool:
        """Whether the annotation allows a value. In doubt it does."""
        if value is None and self.default is None:
            return True
        if value is None and not self.strict and _kinds(self.hint) == {_NUMBER}:
            # None for a flag, or for what is no number by default, may be meant
            return isinstance(self.default, bool) or not isinstance(self.default, (int, float))
        return fits(value, self.hint, strict=self.strict)


class Keys(NamedTuple):
    """What is known of all arguments."""

    known: dict[str, Key]
    #: Whether there are no others.
    complete: bool


def constructor_keys(target: Any) -> Keys:
    """Find the keyword arguments of a class or function.

    A constructor with ``**kwargs`` may hand them to the next class. Its code is read: only if all
    it does with them is that, or to take single keys out, the answer is complete.

    Args:
        target: The class or function.

    Returns:
        Its arguments.
    """
    return _read(target)


@cache
def _read(target: Any) -> Keys:
    known: dict[str, Key] = {}
    forwarded = False
    if not inspect.isclass(target):
        return Keys(known, complete=_add_parameters(target, '', known) is None)
    for cls in target.__mro__:
        init = cls.__dict__.get('__init__')
        if init is None:
            continue
        if cls is BaseModule and forwarded:  # where mmseg puts it for a class of mmdet's
            break
        kwargs = _add_parameters(init, cls.__module__, known)
        if kwargs is None:
            # object takes nothing, unless __new__ does
            return Keys(known, complete=cls is not object or target.__new__ is object.__new__)
        taken_out = _keys_taken_out(init, kwargs, cls.__name__)
        if taken_out is None:
            break
        for name in taken_out:
            known.setdefault(name, Key(default=None))
        forwarded = True
    return Keys(known, complete=False)


def _add_parameters(function: Callable, module: str, known: dict[str, Key]) -> str | None:
    """Add the parameters of a function; return the name of its ``**kwargs``, if it has them."""
    if function is object.__init__:
        return None
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return 'kwargs'
    hints: dict[str, Any] = {}
    package = module.partition('.')[0]
    if package in (_OWN, *_ANNOTATED):
        try:
            hints = get_type_hints(function)
        except (NameError, TypeError, AttributeError):  # names for type checkers only
            hints = {}
    rest = None
    for parameter in parameters:
        name = parameter.name
        if parameter.kind is parameter.VAR_KEYWORD:
            rest = name
        elif parameter.kind is not parameter.VAR_POSITIONAL and name != 'self':
            hint = hints.get(name, Any)
            text = parameter.annotation
            text = text if isinstance(text, str) else inspect.formatannotation(text)
            known.setdefault(name, Key(parameter.default, hint, text, package == _OWN))
    return rest


def _keys_taken_out(init: Callable, kwargs: str, class_name: str) -> set[str] | None:
    """Keys that a constructor takes out of its ``**kwargs`` before the next class gets them.

    Returns:
        The keys, or None if something else happens to the arguments.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
    except (OSError, TypeError, SyntaxError):
        return None
    uses = 0
    forwarded = False
    keys: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == kwargs:
            uses += 1
        elif isinstance(node, ast.Call):
            if _is_constructor_of_next(node.func, class_name):
                passed = sum(_is_name(word.value, kwargs) for word in node.keywords if not word.arg)
                forwarded = forwarded or passed > 0
                uses -= passed
            elif (
                isinstance(node.func, ast.Attribute)
                and _is_name(node.func.value, kwargs)
                and node.func.attr in ('get', 'pop', 'setdefault')
                and (key := _text(node.args[0] if node.args else None)) is not None
            ):
                keys.add(key)
                uses -= 1
        elif isinstance(node, ast.Subscript) and _is_name(node.value, kwargs):
            if (key := _text(node.slice)) is not None:
                keys.add(key)
                uses -= 1
        elif (
            isinstance(node, ast.Compare)
            and any(_is_name(n, kwargs) for n in node.comparators)
            and (key := _text(node.left)) is not None
        ):
            keys.add(key)
            uses -= 1
    return keys if forwarded and uses == 0 else None


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _text(node: ast.AST | None) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


def _is_constructor_of_next(function: ast.expr, class_name: str) -> bool:
    """Whether this is ``super().__init__`` or ``super(ClassName, self).__init__``."""
    return (
        isinstance(function, ast.Attribute)
        and function.attr == '__init__'
        and isinstance(function.value, ast.Call)
        and _is_name(function.value.func, 'super')
        and (not function.value.args or _is_name(function.value.args[0], class_name))
    )


def fits(value: Any, hint: Any, *, strict: bool) -> bool:
    """Whether an annotation allows a value of a config. In doubt it does.

    Args:
        value: The value.
        hint: The annotation.
        strict: Whether it is meant literally. Otherwise only numbers, texts and containers are told
            apart, as annotations of other projects are rarely more exact, and None always fits. An
            annotation that allows a text allows anything.

    Returns:
        Whether it does.
    """
    if not strict:
        kinds = _kinds(hint)
        return value is None or not kinds or _kind(value) in (*kinds, _OTHER) or _TEXT in kinds
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg, strict=True) for arg in args)
    if origin is Literal:
        return value in args
    if origin is types.NoneType:
        return value is None
    if not _kinds(hint):
        return True
    if origin is bool:
        return isinstance(value, int) and value in (0, 1)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is str:
        return isinstance(value, str)
    items: Any
    if issubclass(origin, Mapping):
        items = value.values() if isinstance(value, Mapping) else None
    else:
        items = value if isinstance(value, (list, tuple)) else None
    return items is not None and (not args or all(fits(i, args[-1], strict=True) for i in items))


def misfits(value: Any, hint: Any) -> Iterator[tuple[str, Any]]:
    """Find the items of a container that an annotation, taken literally, does not allow.

    Args:
        value: The value.
        hint: The annotation.

    Yields:
        Dotted path and value of the items.
    """
    args = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType) and isinstance(value, (Mapping, list, tuple)):
        # of several, the one of the same kind
        for choice in args:
            if _kinds(choice) == {_CONTAINER} and fits(type(value)(), choice, strict=True):
                yield from misfits(value, choice)
    elif args and fits(type(value)(), hint, strict=True):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            if not fits(item, args[-1], strict=True):
                inner = list(misfits(item, args[-1])) if _kind(item) == _CONTAINER else []
                yield from [(f'{key}.{path}', x) for path, x in inner] or [(str(key), item)]


_NUMBER, _TEXT, _CONTAINER, _OTHER = 'number', 'text', 'container', 'other'


def _kind(value: Any) -> str:
    if isinstance(value, (int, float)):
        return _NUMBER
    if isinstance(value, str):
        return _TEXT
    return _CONTAINER if isinstance(value, (list, tuple, set, Mapping)) else _OTHER


def _kinds(hint: Any) -> set[str]:
    """Kinds of the values that an annotation allows; none if that is not known."""
    origin = get_origin(hint) or hint
    if origin in (Union, types.UnionType):
        kinds = [_kinds(arg) for arg in get_args(hint) if arg is not types.NoneType]
        return set().union(*kinds) if all(kinds) else set()
    if origin is Literal:
        return {_kind(choice) for choice in get_args(hint)}
    if not inspect.isclass(origin):
        return set()
    if issubclass(origin, Number):
        return {_NUMBER}
    if issubclass(origin, str):
        return {_TEXT}
    # Sequence and Iterable may be meant to hold texts, but then they take one by mistake only.
    return {_CONTAINER} if issubclass(origin, (Iterable, tuple, list, dict)) else set()
