"""Checks that a model has the classes of its data."""

from __future__ import annotations

import inspect
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.fileio import list_from_file
from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import DATASETS
from torch import Tensor, nn

from ..datasets.faults.walk import iter_datasets
from ..errors import ConfigError
from ..models._checks import check_losses, check_test_cfg
from ..models.decode_heads import CooperativeDecodeHead, CoopHead
from ..models.decode_heads.plain_head import is_plain
from ..registry import class_of
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
    first: tuple[str, Sequence[str]] | None = None
    for split in SPLITS if heads else ():
        loader = cfg.get(f'{split}_dataloader')
        if not isinstance(loader, Mapping) or not isinstance(loader.get('dataset'), Mapping):
            continue
        for dataset in iter_datasets(loader['dataset']):
            path = f'{split}_dataloader.dataset'
            classes, name = _classes_of(dataset), f'{path} ({dataset.get("type")})'
            found = {}
            if classes is not None:
                found[f'the number of classes of {name}'] = len(classes)
            for index, transform in enumerate(dataset.get('pipeline') or ()):
                if isinstance(transform, Mapping) and isinstance(transform.get('num_classes'), int):
                    found[f'{path}.pipeline.{index}.num_classes'] = transform['num_classes']
            for what, number in found.items():
                for head, num_classes in heads:
                    if number != num_classes:
                        raise ConfigError(
                            f'{head} is {num_classes}, but {what} is {number}; give both the same '
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
        Dotted path and value of their ``num_classes``.
    """
    for path, part in walk(model, 'model'):
        number, keys = part.get('num_classes'), path.split('.')[1:]
        if not isinstance(number, int) or not all(
            key.isdigit() or key in ('decode_head', 'auxiliary_head') for key in keys
        ):
            continue
        if all(map(means_classes_of_data, find_types(part.get('type')))):
            yield f'{path}.num_classes', number


def means_classes_of_data(head: Any) -> bool:
    """Tell whether a head has one output a class of the data.

    SAN's counts otherwise, and STDC's draws borders.

    Args:
        head: Class of a head.

    Returns:
        Whether it has.
    """
    ours = inspect.isclass(head) and issubclass(head, (CoopHead, CooperativeDecodeHead))
    return ours or is_plain(head)


def check_model(model: nn.Module) -> None:
    """Check what mmseg's parts look at with the first image; ours have done so when built.

    Args:
        model: A model.

    Raises:
        ConfigError: A loss does not fit the outputs of its head, images cannot be predicted as
            ``test_cfg`` says, or the data preprocessor divides by zero. The message gives the path.
    """
    model = getattr(model, 'module', model)
    if getattr(type(model), 'inference', None) is EncoderDecoder.inference:
        try:
            check_test_cfg(getattr(model, 'test_cfg', None) or {})
        except ValueError as error:
            raise ConfigError(f'model.{error}') from error
    std = getattr(getattr(model, 'data_preprocessor', None), 'std', None)
    if isinstance(std, Tensor) and not std.all():
        raise ConfigError(
            f'model.data_preprocessor.std is {std.flatten().tolist()}; it divides, so give no zero.'
        )
    for name, head in model.named_modules():
        if isinstance(head, BaseDecodeHead) and means_classes_of_data(type(head)):
            try:
                check_losses(head)
            except ValueError as error:
                raise ConfigError(f'model.{name}: {error}') from error


def _classes_of(dataset: Any) -> Any:
    metainfo = dataset.get('metainfo') if isinstance(dataset, Mapping) else None
    if isinstance(metainfo, Mapping) and 'classes' in metainfo:
        classes = metainfo['classes']
        if isinstance(classes, str):  # names a file of them, which mmengine reads if it is there
            return list_from_file(classes) if osp.isfile(classes) else None
        return classes
    target = class_of(dataset, DATASETS) if isinstance(dataset, Mapping) else None
    return getattr(target, 'METAINFO', {}).get('classes')
