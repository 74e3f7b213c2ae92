"""Checks that the data a config names are there, before anything is built."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS


def check_data(cfg: Config, splits: tuple[str, ...] = ('train', 'val', 'test')) -> None:
    """Check the data folders and lists of a config.

    Args:
        cfg: Config of a run.
        splits: Data loaders to look at. Defaults to all three.

    Raises:
        FileNotFoundError: A data root, folder or list is missing; the message says which key of the
            config to change.
        ValueError: A split has no image.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        for dataset in leaf_datasets(loader['dataset']):
            _check_paths(dataset, split)
            _check_not_empty(dataset, split)


def leaf_datasets(dataset: Any) -> Iterator[Any]:
    """Find the data sets inside wrappers such as ``ConcatDataset`` and ``RepeatDataset``.

    Args:
        dataset: Config of a data set or a wrapper.

    Yields:
        The configs of the data sets.
    """
    if 'datasets' in dataset:
        for part in dataset['datasets']:
            yield from leaf_datasets(part)
    elif 'dataset' in dataset:
        yield from leaf_datasets(dataset['dataset'])
    else:
        yield dataset


def _check_paths(dataset: Any, split: str) -> None:
    root = dataset.get('data_root') or ''
    if root and not osp.isdir(root):
        raise FileNotFoundError(
            f'data root {root!r} of the {split} split does not exist (looked in '
            f'{osp.abspath(root)!r}). Link or copy the data there, or set '
            f'--cfg-options {split}_dataloader.dataset.data_root=DIR.'
        )
    prefixes = dataset.get('data_prefix') or {}
    for key, path in {**prefixes, 'ann_file': dataset.get('ann_file') or ''}.items():
        if path and not osp.exists(osp.join(root, path)):
            raise FileNotFoundError(
                f'{key} {osp.join(root, path)!r} of the {split} split does not exist; check '
                f'{split}_dataloader.dataset.data_root and {key}.'
            )


def _check_not_empty(dataset: Any, split: str) -> None:
    # Only the class itself knows which files it takes; lazily built it has not looked yet.
    built = DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []})
    if not built.load_data_list():
        suffix = getattr(built, 'img_suffix', '')
        raise ValueError(
            f'the {split} split is empty: {type(built).__name__} finds no image *{suffix} with '
            f'data_prefix={dict(built.data_prefix)}, ann_file={built.ann_file!r}. Check '
            'data_root, data_prefix, ann_file and img_suffix.'
        )
