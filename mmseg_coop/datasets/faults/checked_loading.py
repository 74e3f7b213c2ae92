"""Names the transforms that check files in configs that name the stock ones."""

from __future__ import annotations

import copy
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from ...errors import ConfigError
from ...registry import class_of
from ..transforms import LoadSegAnnotations, LoadSegImage
from .walk import build_unread, iter_datasets, iter_transforms


def check_loading(dataset: dict[str, Any]) -> None:
    """Make the config of a dataset load files with the transforms that check them.

    ``LoadImageFromFile`` becomes :class:`LoadSegImage` and ``LoadAnnotations`` becomes
    :class:`LoadSegAnnotations`, also inside other transforms. Labels are held to the classes of the
    dataset unless the pipeline says to which. Other transforms that load files are left alone.

    Our configs name the checking transforms themselves, but for the test pipelines: mmseg's
    inferencers look for the stock ones there.

    Args:
        dataset: Config of a dataset or of a wrapper, which is changed.

    Raises:
        ConfigError: An argument has no counterpart.
    """
    for leaf in iter_datasets(dataset):
        name_checks(leaf, build_unread(leaf))


def name_checks(leaf: dict[str, Any], built: BaseDataset) -> None:
    """Do so for one dataset.

    Args:
        leaf: Its config, which is changed.
        built: The dataset, which need not be initialised: only its class knows its classes.
    """
    if not leaf.get('pipeline'):
        return
    classes = built.metainfo.get('classes')
    labels = dict(num_classes=len(classes), ignore_index=built.ignore_index) if classes else {}
    # A pipeline may stand in the config more than once.
    leaf['pipeline'] = copy.deepcopy(leaf['pipeline'])
    for step in iter_transforms(leaf['pipeline']):
        kind = class_of(step, TRANSFORMS)
        if kind is LoadImageFromFile:
            step['type'] = LoadSegImage.__name__
            step.pop('ignore_empty', None)  # what becomes of faulty files is not for a pipeline
            if step.pop('file_client_args', None) is not None:
                raise ConfigError(
                    'LoadImageFromFile(file_client_args=...) is out of date; give backend_args.'
                )
        elif kind in (LoadAnnotations, LoadSegAnnotations):
            step.update({**labels, **step, 'type': LoadSegAnnotations.__name__})
