"""Finds the data sets inside wrappers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def iter_datasets(dataset: Any) -> Iterator[Any]:
    """Find the data sets inside wrappers such as ``ConcatDataset`` and ``RepeatDataset``.

    Args:
        dataset: Config of a data set or a wrapper.

    Yields:
        The configs of the data sets.
    """
    if 'datasets' in dataset:
        for part in dataset['datasets']:
            yield from iter_datasets(part)
    elif 'dataset' in dataset:
        yield from iter_datasets(dataset['dataset'])
    else:
        yield dataset
