"""Checks of the arguments that models are built from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise a ValueError unless the argument ``name`` has one of ``choices`` as its ``value``."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f'{name}={value!r} is unknown; choose one of {choices}.')


def check_positive(name: str, value: object) -> None:
    """Raise a ValueError unless the argument ``name`` has a positive integer as its ``value``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f'{name}={value!r} is not a positive integer; give a number from 1 on.')


def check_all_positive(name: str, values: object, *, example: str, noun: str = 'number') -> None:
    """Raise a ValueError unless ``name`` has a sequence of positive integers, at least one.

    Args:
        name: Name of the argument.
        values: Its value.
        example: What may be given.
        noun: What one of them is. Defaults to ``'number'``.
    """
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(
            f'{name}={values!r} holds no {noun}s; give at least one, such as {example}.'
        )
    for value in values:
        check_positive(f'{name}={values!r}: {noun}', value)


def check_fraction(name: str, value: object) -> None:
    """Raise a ValueError unless the argument ``name`` has a number from 0 to 1 as its ``value``."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f'{name}={value!r} is no fraction; give a number from 0 to 1.')
