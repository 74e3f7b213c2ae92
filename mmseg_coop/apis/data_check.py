"""Checks that the data a config names are there, and has every file checked as it is read."""

from __future__ import annotations

import os
import os.path as osp
import sys
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope
from mmseg.registry import TRANSFORMS

from ..config.build_errors import config_errors
from ..config.class_check import check_classes
from ..config.parts import walk
from ..datasets.faults.checked_loading import name_checks
from ..datasets.faults.folders import dead_links
from ..datasets.faults.walk import build_unread, iter_datasets, name_of
from ..errors import ConfigError, DataError, first_few


def check_data(
    cfg: Config,
    splits: tuple[str, ...] = ('train', 'val', 'test'),
    *,
    data_faults: str = 'stop',
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Check the classes, the data folders and the lists of a config before anything is built.

    The files themselves are checked as they are read: stock transforms that load them become those
    that check (:func:`check_loading`).

    Args:
        cfg: Config of a run, which is changed.
        splits: Data loaders that the run uses. Defaults to all three.
        data_faults: What a file that cannot be used does. ``'stop'`` (the default) ends the run,
            unless the config itself has a :class:`SkipFaultyDataset`; ``'skip'`` goes on without
            it, by that wrapper and the hook that counts.

    Returns:
        The config of each dataset of the splits, and what it knows of each of its images.

    Raises:
        ConfigError: Model, datasets and labels have different classes, or an evaluation resizes its
            labels.
        FileNotFoundError: A data root, folder or list is missing; the message says which key of the
            config to change.
        DataError: A split has no image, a folder or a list cannot be read, a link leads nowhere,
            there is a symlink loop, or the name of an image is no text.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    with config_errors(cfg):
        check_classes(cfg)
    checked = []
    for split in splits:
        loader, path = cfg.get(f'{split}_dataloader'), f'{split}_dataloader.dataset'
        if not loader:
            continue
        with config_errors(cfg, path):
            for dataset in iter_datasets(loader['dataset']):
                _check_paths(dataset, split)
                built = build_unread(dataset)  # only the class itself knows which files it takes
                links = [link for links in dead_links(built).values() for link in links]
                if links and data_faults == 'stop':
                    raise DataError(
                        'links lead nowhere (fix or remove them): '
                        + first_few((f'{link} to {os.readlink(link)}' for link in links), 1),
                        path=links[0],
                    )
                images = _check_images(built, split)
                checked.append((dataset, images))
                name_checks(dataset, built)
                places = (p for p, part in walk(loader['dataset'], path) if part is dataset)
                _check_sample(cfg, built, dataset, images[0], next(places, path))
        if data_faults == 'skip' and name_of(loader['dataset']) != 'SkipFaultyDataset':
            wrapper: dict[str, Any] = dict(type='SkipFaultyDataset', test_mode=split != 'train')
            loader['dataset'] = dict(**wrapper, dataset=loader['dataset'])
    hooks = cfg.get('custom_hooks') or []
    if data_faults == 'skip' and 'SkippedFilesHook' not in map(name_of, hooks):
        cfg.custom_hooks = [*hooks, dict(type='SkippedFilesHook')]
    return checked


def _check_paths(dataset: Any, split: str) -> None:
    root, prefixes = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    paths = {**prefixes, 'ann_file': dataset.get('ann_file') or ''}
    for key, path in {'data_root': root, **paths}.items():
        if not isinstance(path, str):
            raise ConfigError(f'{key} of {split}_dataloader.dataset is {path!r}; give a path.')
    if root and not _reaches(root):
        raise FileNotFoundError(
            f'data root {root!r} of the {split} split does not exist (looked in '
            f'{osp.abspath(root)!r}). Link or copy the data there, or set '
            f'--cfg-options {split}_dataloader.dataset.data_root=DIR.'
        )
    for key, path in paths.items():
        if path and not _reaches(osp.join(root, path)):
            raise FileNotFoundError(
                f'{key} {osp.join(root, path)!r} of the {split} split does not exist; check '
                f'{split}_dataloader.dataset.data_root and {key}.'
            )


def _reaches(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # there, but closed or a symlink loop
        raise DataError(
            f'{path} cannot be reached ({type(error).__name__}: {error.strerror}); fix it, or '
            'choose another by data_root and data_prefix',
            path=path,
        ) from error
    return True


def _check_images(dataset: BaseDataset, split: str) -> list[dict[str, Any]]:
    try:
        images = dataset.load_data_list()
    except UnicodeDecodeError as error:
        raise DataError(
            f'ann_file {dataset.ann_file} is not UTF-8 text ({error}); save it as UTF-8',
            path=dataset.ann_file,
        ) from error
    if not images:
        suffix = getattr(dataset, 'img_suffix', '')
        raise DataError(
            f'the {split} split is empty: {type(dataset).__name__} finds no image *{suffix} with '
            f'data_prefix={dict(dataset.data_prefix)}, ann_file={dataset.ann_file!r}. Check '
            'data_root, data_prefix, ann_file and img_suffix.'
        )
    for info in images:
        path = info['img_path']
        try:
            path.encode()
        except UnicodeEncodeError:  # bytes that are no characters, on which OpenCV crashes
            raise DataError(
                f'the name of {path} is not {sys.getfilesystemencoding()} text; rename it, or if '
                'it is in UTF-8, set the environment variable PYTHONUTF8=1',
                path=path,
            ) from None
    return images


def _check_sample(cfg: Config, built: BaseDataset, dataset: Any, info: Any, path: str) -> None:
    """Take an image through the pipeline of its dataset.

    What fails does so now, with the path of the transform, rather than in a worker of the loader.
    An evaluation whose pipeline changes the label's size is refused: predictions are resized to
    ``ori_shape``, so labels have to be of that size.
    """
    if type(built).get_data_info is not BaseDataset.get_data_info:  # may know more of the image
        return
    if path.startswith('test_') and 'seg_map_path' not in info:  # perhaps it is only predicted
        return
    results: Any = {**info, 'sample_idx': 0}
    fault = ''
    for index, step in enumerate(dataset.get('pipeline', ())):
        place = f'{path}.pipeline.{index}'
        try:
            with config_errors(cfg, place):
                transform = TRANSFORMS.build(step) if isinstance(step, dict) else step
                results = transform(results)
        except DataError:  # of the file, which the run itself says or skips
            return
        if not isinstance(results, dict):
            break
        label, size = results.get('gt_seg_map'), results.get('ori_shape')
        if label is None or size is None:  # not loaded yet, or packed
            continue
        if label.shape == tuple(size):  # as EvalCenterCrop makes it
            fault = ''
        elif not fault:
            fault = (
                f'{place} ({type(transform).__name__}) turns the label of {info["img_path"]} into '
                f'{label.shape[0]}x{label.shape[1]}, but predictions are evaluated at '
                f'{size[0]}x{size[1]} (height x width); load labels behind the transforms that '
                'resize the image, and crop with EvalCenterCrop.'
            )
    unpacked = isinstance(results, dict) and not {'inputs', 'data_samples'} & results.keys()
    if unpacked and path.count('.') == 1:  # a wrapper may pack what its dataset gives
        raise ConfigError(f'{path}.pipeline packs no image; end it with PackSegInputs.')
    if fault and not path.startswith('train_'):
        raise ConfigError(fault)
