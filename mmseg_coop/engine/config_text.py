"""Configs that a checkpoint or a work directory brings along: text, of which nothing is run."""

from __future__ import annotations

import ast
from typing import Any

_LONGEST = 2**20  # characters; the parser's memory is some hundred times as much


def _value(node: Any) -> Any:
    """Evaluate literals, and what mmengine's dumps hold beside them."""
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=items) if (
            all(item.arg for item in items)  # none is unpacked by **
        ):
            return {item.arg: _value(item.value) for item in items}
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as items], keywords=[]):
            return _value(items)  # so where not all keys are identifiers
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.List(elts=parts):
            return [_value(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_value(part) for part in parts)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.Name(id='inf' | 'nan' as name):
            return float(name)
    return ast.literal_eval(node)


def read_config(text: str) -> dict[str, Any]:
    r"""Read the values of a config as mmengine dumps it, without running or importing anything.

    Args:
        text: Lines of the form ``name = value``.

    Returns:
        The values by name; ``custom_imports`` and ``type`` are values like all others.

    Raises:
        ValueError: If the text is anything else, such as a program.

    Example:
        >>> read_config("custom_imports = dict(imports=['os'])\nlr = 1e-3")
        {'custom_imports': {'imports': ['os']}, 'lr': 0.001}
    """
    if len(text) > _LONGEST:
        raise ValueError(f'has {len(text)} characters, more than {_LONGEST}')
    config = {}
    try:
        for node in ast.parse(text).body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if name != '_base_':
                    config[name] = _value(value)
                case _:
                    raise ValueError
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError('is a program: it holds more than names and their values') from None
    return config
