"""Faults of folders, which a listing either trips over or passes over in silence."""

from __future__ import annotations

import os
import os.path as osp
from pathlib import Path

from mmengine.dataset import BaseDataset

from ...errors import DataError


def dead_links(dataset: BaseDataset) -> dict[str, list[str]]:
    """Go through the folders of a dataset as mmengine lists them, following links.

    A folder that cannot be read hides images; in a symlink loop the listing goes round until the
    system ends it, with every image up to 40 times; a link that leads nowhere is left out. With a
    list of files (``ann_file``) folders are not listed, nor looked at here, and neither are those
    that are not on the local disk.

    Args:
        dataset: The dataset, which need not be initialised.

    Returns:
        Links that lead nowhere and are named as an image (under ``'img_path'``) or as a label
        (``'seg_map_path'``).

    Raises:
        DataError: A folder cannot be read, there is a symlink loop, or a link leads nowhere that
            may stand for a folder. How many images these cost cannot be said.
    """
    if dataset.ann_file and not osp.isdir(dataset.ann_file):
        return {}
    suffixes = dict(img_path='img_suffix', seg_map_path='seg_map_suffix')
    return {
        key: _walk(dataset.data_prefix.get(key) or '', getattr(dataset, suffix, ''))
        for key, suffix in suffixes.items()
    }


def _walk(folder: str, suffix: str, above: tuple[tuple[int, int], ...] = ()) -> list[str]:
    """Dead links in a folder whose names end like its files; `above` are the folders it is in."""
    if not osp.isdir(folder):
        return []
    here = os.stat(folder)
    key = here.st_dev, here.st_ino
    if key in above:
        raise DataError(
            f'folder {folder} is a symlink loop: it leads back to a folder above it, so that its '
            'files would be listed again and again; remove the link',
            path=folder,
        )
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f'folder {folder} cannot be read ({type(error).__name__}: {error.strerror}); make it '
            'readable, or choose another by data_root and data_prefix',
            path=folder,
        ) from error
    dead = []
    for entry in entries:
        fault = None
        if entry.is_symlink():
            try:
                entry.stat()
            except OSError as error:
                fault = error
        missing = isinstance(fault, FileNotFoundError)
        if fault is None:
            if entry.is_dir():
                dead += _walk(entry.path, suffix, (*above, key))
        elif missing and entry.name.endswith(suffix):
            dead.append(entry.path)
        # Hidden files are not listed, nor are those that end otherwise.
        elif not entry.name.startswith('.') and not (missing and Path(entry.name).suffix):
            raise DataError(
                f'link {entry.path} cannot be followed to {os.readlink(entry.path)} '
                f'({type(fault).__name__}: {fault.strerror}), whatever files are there; fix or '
                'remove it',
                path=entry.path,
            )
    return dead
