"""Finds the parts that datasets are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import BaseDataset
from mmseg.registry import DATASETS


def iter_datasets(dataset: Any, *, until: str = '') -> Iterator[Any]:
    """Find the datasets inside wrappers such as ``ConcatDataset`` and ``RepeatDataset``.

    Args:
        dataset: A dataset or a wrapper, or the config of either.
        until: Name of a wrapper that is not looked into. Defaults to ``''``: all are.

    Yields:
        The datasets, or their configs; and wrappers of that name.
    """
    is_config = isinstance(dataset, dict)
    get = dataset.get if is_config else lambda key, default=None: getattr(dataset, key, default)
    inside = get('datasets') or [get('dataset')]
    if inside == [None] or until == (name_of(dataset) if is_config else type(dataset).__name__):
        yield dataset
    else:
        for part in inside:
            yield from iter_datasets(part, until=until)


def iter_transforms(part: Any) -> Iterator[Any]:
    """Find the transforms of a pipeline, also those inside of others.

    Args:
        part: Config of a pipeline or of a part of it.

    Yields:
        The configs of the transforms.
    """
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from iter_transforms(item)
    elif isinstance(part, dict):
        if 'type' in part:
            yield part
        yield from iter_transforms(list(part.values()))


def name_of(part: Any) -> str:
    """Name of the class of a part of a config, without its scope."""
    kind = part.get('type')
    return getattr(kind, '__name__', str(kind).rpartition('.')[2])


def build_unread(config: Any) -> BaseDataset:
    """Build a dataset that has read no file, to ask it what only its class knows.

    Args:
        config: Its config.

    Returns:
        The dataset, with neither a list of files nor a pipeline.
    """
    return DATASETS.build({**config, 'lazy_init': True, 'pipeline': []})
