"""The rooms of the package and the order of their floors: imports run down only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'mmseg_coop'
#: Rooms by floor, from the ground. A room imports nothing from beside or above it.
FLOORS = (
    ('_stack', 'errors', 'registry', 'version'),
    ('datasets', 'evaluation', 'models', 'visualization'),
    ('engine',),
    ('config',),
    ('apis',),
    ('analysis', 'utils'),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def imported_rooms(path):
    """Rooms that a module imports from, its own left out."""
    parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = '.'.join(parts[: -node.level]) if node.level else ''
            module = '.'.join(filter(None, (base, node.module)))
            names = [f'{module}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, rest = name.partition('.')
            if package == PACKAGE.name and rest.partition('.')[0] != room_of(path):
                yield rest.partition('.')[0]


MODULES = sorted(path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts)


def test_every_room_has_a_floor():
    assert {room_of(path) for path in MODULES} - {'__init__'} == set(FLOOR)


@pytest.mark.parametrize('path', MODULES[1:], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_down_only(path):
    for room in imported_rooms(path):
        assert FLOOR[room] < FLOOR[room_of(path)], f'{path.name} imports from {room}'
