"""Configs that a checkpoint or a work directory brings along: text, of which nothing is run."""

from __future__ import annotations

import ast
from typing import Any

import mmengine.registry
from mmengine.registry import Registry

_LONGEST = 2**20  # characters; the parser's memory is some hundred times as much


class _Literals(ast.NodeTransformer):
    """Write what mmengine's dumps hold beside literals as literals."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Name(id='dict'), args=[], keywords=items) if (
                all(item.arg for item in items)  # none is unpacked by **
            ):
                keys = [ast.Constant(item.arg) for item in items]
                return ast.Dict([*keys], [item.value for item in items])
            case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as items], keywords=[]):
                return items  # so where not all keys are identifiers
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(float(node.id)) if node.id in ('inf', 'nan') else node


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
                    config[name] = ast.literal_eval(_Literals().visit(value))
                case _:
                    raise ValueError
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError('is a program: it holds more than names and their values') from None
    return config


def check_names(config: dict[str, Any]) -> None:
    """Check that a config makes nothing but what is registered.

    mmengine imports the rest: the module and the function that a ``type`` with dots names, the
    module ``registry`` of every scope, and any module whose name is a ``type``.

    Args:
        config: The values of the config.

    Raises:
        ValueError: If it names anything else.
    """
    scopes, names = set(), set()
    for root in vars(mmengine.registry).values():
        for registry in (root, *root.children.values()) if isinstance(root, Registry) else ():
            registry.import_from_location()
            scopes.add(registry.scope)
            names.update(registry.module_dict)
    allowed = {'type': names, '_scope_': scopes, 'default_scope': scopes}
    values: list[Any] = [config]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            for key, name in value.items():
                if isinstance(name, str) and name not in allowed.get(key, (name,)):
                    raise ValueError(f'names {key}={name[:100]!r}, which is not registered')
            values.extend(value.values())
        elif isinstance(value, (list, tuple)):
            values.extend(value)
