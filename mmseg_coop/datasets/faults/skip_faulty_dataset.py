"""Goes on without the files that cannot be used, and says so."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_dist_info
from mmengine.logging import print_log
from mmseg.registry import DATASETS
from torch.utils.data import get_worker_info

from ...errors import DataError, first_few, printable
from .checked_loading import check_loading
from .folders import dead_links
from .walk import build_unread, iter_datasets

#: Meta information of a sample that stands for others: their files, and what is wrong with them.
SKIPPED_KEY = 'skipped_files'


@DATASETS.register_module()
class SkipFaultyDataset:
    """Leaves out the files of a dataset that cannot be used.

    These are the files for which loading raises a :class:`DataError`; for that, it makes stock
    transforms those that check (:func:`check_loading`). Use it together with
    :class:`SkippedFilesHook`, which counts what is left out; ``--data-faults skip`` of
    ``tools/train.py`` and ``tools/test.py`` adds both.

    In training, a sample drawn at random takes the place of a faulty one. In evaluation that would
    change the result: there all samples are loaded once before, the faulty ones are removed and the
    log names them. Several processes share that work.

    Args:
        dataset: The dataset or a wrapper of it, or the config of either. Its samples have to be
            packed (``PackSegInputs``), so this is the outermost wrapper.
        test_mode: Whether it is evaluated on.
        max_in_a_row: So many faulty samples one after the other end the training: not single files
            are at fault then. With one faulty file in ten this happens by chance once in 10
            billion samples. Default: 10.
        lazy_init: Whether to wait with the reading of files until :meth:`full_init`. Default:
            False.

    Raises:
        ValueError: If `max_in_a_row` is not positive.
        DataError: If too many samples are faulty, or a folder is.

    Example:
        A config that trains so::

            train_dataloader = dict(
                dataset=dict(
                    type='SkipFaultyDataset',
                    test_mode=False,
                    dataset=dict(type='CityscapesDataset', ...),
                ),
                ...
            )
            custom_hooks = [dict(type='SkippedFilesHook')]
    """

    def __init__(
        self, *, dataset: Any, test_mode: bool, max_in_a_row: int = 10, lazy_init: bool = False
    ) -> None:
        if max_in_a_row < 1:
            raise ValueError(f'max_in_a_row is {max_in_a_row}; give 1 or more')
        #: Files that are left out for good, and what is wrong with them.
        self.left_out = _dead_images(dataset)
        if isinstance(dataset, dict):
            dataset = copy.deepcopy(dataset)
            check_loading(dataset)
            dataset = DATASETS.build(dataset)
        self.dataset = dataset
        self.test_mode = test_mode
        self.max_in_a_row = max_in_a_row
        self._indices: list[int] = []
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict[str, Any]:
        """Meta information of the dataset."""
        return copy.deepcopy(self.dataset.metainfo)

    def full_init(self) -> None:
        """Initialise the dataset, and find what has to be left out; a DataError if that is all."""
        if self._fully_initialized:
            return
        self.dataset.full_init()
        count = len(self.dataset)
        #: Number of samples together with those that are left out.
        self.full_length = count + len(self.left_out)
        faults = self._try_all(count) if self.test_mode else {}
        self._indices = [index for index in range(count) if index not in faults]
        self.left_out.update(faults.values())
        self._fully_initialized = True
        if self.left_out:
            print_log(
                f'{self.full_length - len(self)} of {self.full_length} images are left out:\n'
                + '\n'.join(self.left_out.values()),
                logger='current',
                level=logging.WARNING,
            )
        if not self._indices:
            texts = first_few(self.left_out.values(), separator='; ')
            raise DataError(f'no image can be used: {texts}')

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """What the dataset says about the sample of an index."""
        self.full_init()
        return self.dataset.get_data_info(self._indices[idx])

    def __len__(self) -> int:
        self.full_init()
        return len(self._indices)

    def __getitem__(self, idx: int) -> Any:
        """Load a sample, in training another one if its files are faulty.

        The meta information of a sample that stands for others has their files and faults under
        ``skipped_files``.
        """
        self.full_init()
        idx = self._indices[idx]
        if self.test_mode:
            return self.dataset[idx]
        faults: list[tuple[str, str]] = []
        while len(faults) < self.max_in_a_row:
            try:
                sample = self.dataset[idx]
            except DataError as fault:
                faults.append((fault.path, str(fault)))
                # numpy's generator is what mmcv draws from, and what a seeded loader has seeded.
                idx = int(np.random.randint(len(self.dataset)))  # noqa: NPY002
            else:
                return _note(sample, faults) if faults else sample
        texts = first_few(dict(faults).values(), separator='; ')
        raise DataError(
            f'{len(faults)} samples in a row cannot be used, which is not a matter of single '
            f'files: {texts}'
        )

    def _try_all(self, count: int) -> dict[int, tuple[str, str]]:
        """Load every sample; returns the index, the file and the fault of those that are faulty."""
        print_log(f'Loading {count} images to leave out faulty ones', logger='current')
        # A worker of a loader has the process group of the main process, but is not part of it.
        alone = get_worker_info() is not None
        rank, world_size = (0, 1) if alone else get_dist_info()
        faults = {}
        with _own_random_numbers():
            for index in range(rank, count, world_size):
                try:
                    self.dataset[index]
                except DataError as fault:
                    faults[index] = (fault.path, str(fault))
        parts = [faults] if alone else all_gather_object(faults)
        found = {index: fault for part in parts for index, fault in part.items()}
        return dict(sorted(found.items()))


def _note(sample: Any, faults: list[tuple[str, str]]) -> Any:
    """Write down in a sample which faults it stands for."""
    if not isinstance(sample, dict) or 'data_samples' not in sample:
        raise ValueError(
            'SkipFaultyDataset takes samples as PackSegInputs makes them, to write down in them '
            'what was skipped; put it outside of all other wrappers'
        )
    sample['data_samples'].set_metainfo({SKIPPED_KEY: faults})
    return sample


def _dead_images(dataset: Any) -> dict[str, str]:
    """Images that are links to nowhere, which a listing of the folder leaves out in silence."""
    links: list[str] = []
    for leaf in iter_datasets(dataset):
        leaf = build_unread(leaf) if isinstance(leaf, dict) else leaf
        links += map(printable, dead_links(leaf).get('img_path', ()))
    return {link: f'image {link} is a link that leads nowhere; fix or remove it' for link in links}


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Leave the random numbers outside as they would be without what is done inside."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
