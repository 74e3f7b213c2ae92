"""Compares weights with the model that is to take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ..errors import first_few, printable


class Misfits(NamedTuple):
    """What does not fit; as a text, one line that is safe to print."""

    #: Names of weights of another shape than the model's, with both.
    reshaped: dict[str, str]
    #: Names of what the model has, and the weights lack.
    missing: list[str]
    #: Names of what the model does not have.
    unknown: list[str]

    def __str__(self) -> str:
        facts = {
            'size mismatch for': [f'{name} ({what})' for name, what in self.reshaped.items()],
            'it lacks': self.missing,
            'it holds the unknown': self.unknown,
        }
        said = [f'{what} {first_few(names)}' for what, names in facts.items() if names]
        return printable('; '.join(said))


def compare_weights(model: nn.Module, weights: Mapping[str, Any]) -> Misfits:
    """Compare weights with a model's.

    Args:
        model: The model, without what wraps it.
        weights: The weights by name.

    Returns:
        What does not fit.
    """
    wanted = model.state_dict()
    reshaped = {}
    for name, value in wanted.items():
        shape = getattr(weights.get(name), 'shape', None)
        if name in weights and shape != value.shape:
            held = 'no tensor' if shape is None else [*shape]
            reshaped[name] = f'{held} in place of {[*value.shape]}'
    missing = [name for name in wanted if name not in weights]
    return Misfits(reshaped, missing, [str(name) for name in weights if name not in wanted])
