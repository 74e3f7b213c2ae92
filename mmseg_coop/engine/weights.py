"""Compares weights with the model that is to take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ..errors import first_few, printable


class Misfits(NamedTuple):
    """Names of weights that do not fit; as a text, one line that is safe to print."""

    #: Of another shape, with both.
    reshaped: dict[str, str]
    missing: list[str]
    unknown: list[str]

    def __str__(self) -> str:
        shapes = [f'{name} ({shapes})' for name, shapes in self.reshaped.items()]
        facts = ('size mismatch for', 'it lacks', 'it holds the unknown')
        names = zip(facts, (shapes, self.missing, self.unknown), strict=True)
        return printable('; '.join(f'{what} {first_few(some)}' for what, some in names if some))


def compare_weights(model: nn.Module, weights: Mapping[str, Any]) -> Misfits:
    """Compare weights with those of a model.

    Args:
        model: The model, without what wraps it.
        weights: The weights by name.

    Returns:
        What does not fit.
    """
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    held: Any = {name: getattr(value, 'shape', None) for name, value in weights.items()}
    return Misfits(
        {
            name: f'{held[name] and [*held[name]]} in place of {[*shape]}'
            for name, shape in wanted.items()
            if name in held and held[name] != shape
        },
        [name for name in wanted if name not in held],
        [str(name) for name in held if name not in wanted],
    )
