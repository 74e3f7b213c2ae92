"""Checks that a model has the classes of its data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import DATASETS

from ..models.decode_heads.coop_head import BaseCoopHead, SteppedDecodeHead
from .config_check import ConfigError, find_types
from .leaf_datasets import leaf_datasets


def check_num_classes(cfg: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Compare the numbers of classes of heads, data sets and checks of labels.

    Args:
        cfg: Config of a run.
        splits: Data loaders to look at.

    Raises:
        ConfigError: They differ.
    """
    heads = list(_heads(cfg.get('model'), 'model'))
    for split in splits if heads else ():
        loader, path = cfg.get(f'{split}_dataloader'), f'{split}_dataloader.dataset'
        if not isinstance(loader, Mapping) or not isinstance(loader.get('dataset'), Mapping):
            continue
        for dataset in leaf_datasets(loader['dataset']):
            classes = _classes_of(dataset)
            found = {}
            if classes is not None:
                found[f'the number of classes of {path} ({dataset["type"]})'] = len(classes)
            for index, transform in enumerate(dataset.get('pipeline') or ()):
                if isinstance(transform, Mapping) and isinstance(transform.get('num_classes'), int):
                    found[f'{path}.pipeline.{index}.num_classes'] = transform['num_classes']
            for what, number in found.items():
                for head, num_classes in heads:
                    if number != num_classes:
                        raise ConfigError(
                            f'{head} is {num_classes}, but {what} is {number}; give both the same '
                            '(metainfo=dict(classes=…) chooses among the classes of a data set).'
                        )


def _heads(part: Any, path: str) -> Iterator[tuple[str, int]]:
    """Where ``num_classes`` stands in heads, and what it is there."""
    if isinstance(part, (list, tuple)):
        for index, item in enumerate(part):
            yield from _heads(item, f'{path}.{index}')
    if not isinstance(part, Mapping):
        return
    number = part.get('num_classes')
    if isinstance(number, int) and all(map(_means_classes_of_data, find_types(part.get('type')))):
        yield f'{path}.num_classes', number
    for key in ('decode_head', 'auxiliary_head'):
        yield from _heads(part.get(key), f'{path}.{key}')


def _means_classes_of_data(head: Any) -> bool:
    """Whether a head has one logit a class; SAN's counts otherwise, and STDC's draws borders."""
    if not inspect.isclass(head) or issubclass(head, (BaseCoopHead, SteppedDecodeHead)):
        return inspect.isclass(head)
    return all(
        getattr(head, name, None) is getattr(BaseDecodeHead, name)
        for name in ('loss_by_feat', 'predict', 'predict_by_feat')
    )


def _classes_of(dataset: Any) -> Any:
    metainfo = dataset.get('metainfo') if isinstance(dataset, Mapping) else None
    if isinstance(metainfo, Mapping) and 'classes' in metainfo:
        classes = metainfo['classes']
        return None if isinstance(classes, str) else classes  # a text names a file of them
    name = dataset.get('type') if isinstance(dataset, Mapping) else None
    target = DATASETS.get(name) if isinstance(name, str) else name
    return getattr(target, 'METAINFO', {}).get('classes')
