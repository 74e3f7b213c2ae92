"""Checks that a model has the classes of its data."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from inspect import isclass
from typing import Any

from mmengine.fileio import list_from_file

from ..errors import ConfigError
from ..models.decode_heads import CooperativeDecodeHead, CoopHead
from ..models.decode_heads.plain_head import is_plain
from .parts import SPLITS, find_types, walk


def check_classes(cfg: Mapping[str, Any]) -> None:
    """Compare the classes of heads, datasets and checks of labels.

    The datasets' names have to be the same, in the same order; heads and checks have their number.

    Args:
        cfg: Config of a run.

    Raises:
        ConfigError: They differ, or a head has a single class.
    """
    heads = list(find_heads(cfg.get('model')))
    for head, number in heads:
        if number == 1:
            raise ConfigError(
                f'{head} is 1, which leaves nothing to tell apart. An object and its background '
                'are num_classes=2, with one output a class or with out_channels=1 and a loss with '
                'use_sigmoid=True: see docs/binary_segmentation.md.'
            )
    first: tuple[str, Any] | None = None
    loaders = [f'{split}_dataloader' for split in SPLITS if heads]
    for path, part in (found for loader in loaders for found in walk(cfg.get(loader), loader)):
        classes, what, count = _classes_of(part), f'{path}.num_classes', part.get('num_classes')
        if classes is not None:
            dataset = '.'.join(path.split('.')[:2])  # whatever wraps it
            name = f'{dataset} ({part.get("type")})'
            what, count = f'the number of classes of {name}', len(classes)
        for head, num_classes in heads:
            if isinstance(count, int) and count != num_classes:
                raise ConfigError(
                    f'{head} is {num_classes}, but {what} is {count}; give both the same '
                    '(metainfo=dict(classes=…) chooses among the classes of a dataset).'
                )
        if classes is not None:
            first = first or (name, classes)
            _check_names(*first, name, classes)


def _check_names(first: str, expected: Sequence[str], other: str, classes: Sequence[str]) -> None:
    for index, (one, two) in enumerate(zip(expected, classes, strict=True)):
        if one != two:
            raise ConfigError(
                f'class {index} is {one!r} in {first}, but {two!r} in {other}; give both the same '
                'classes in the same order (metainfo=dict(classes=…) orders those of a dataset).'
            )


def find_heads(model: Any) -> Iterator[tuple[str, int]]:
    """Find the heads that have one output a class of the data.

    Args:
        model: Config of a model.

    Yields:
        Dotted path and value of their ``num_classes``. SAN's counts otherwise, STDC's draws
        borders.
    """
    for path, part in walk(model, 'model'):
        number, keys = part.get('num_classes'), path.split('.')[1:]
        if not isinstance(number, int) or not all(
            key.isdigit() or key in ('decode_head', 'auxiliary_head') for key in keys
        ):
            continue
        kinds = find_types(part.get('type'))
        ours = [k for k in kinds if isclass(k) and issubclass(k, (CoopHead, CooperativeDecodeHead))]
        if all(kind in ours or is_plain(kind) for kind in kinds):
            yield f'{path}.num_classes', number


def _classes_of(part: Mapping[str, Any]) -> Any:
    """Classes of a dataset; None for what is none or does not say."""
    metainfo = part.get('metainfo')
    if isinstance(metainfo, Mapping) and 'classes' in metainfo:
        classes = metainfo['classes']
        if isinstance(classes, str):  # names a file of them, which mmengine reads if it is there
            return list_from_file(classes) if osp.isfile(classes) else None
        return classes
    targets = find_types(part.get('type'))
    return next((t.METAINFO.get('classes') for t in targets if hasattr(t, 'METAINFO')), None)
