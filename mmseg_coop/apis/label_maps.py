"""Settles what a test does with its data: measures them, writes their label maps, or both."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry
from mmseg.registry import METRICS, TRANSFORMS

from ..config.signatures import constructor_keys
from ..datasets.faults.walk import iter_datasets, iter_transforms, name_of
from ..errors import DataError
from ..registry import class_of
from .data_check import check_data


def prepare_data(
    cfg: Config, *, out: str | None, output: str | None, palette: bool, data_faults: str
) -> None:
    """Check the data, and settle whether they are measured, their label maps written, or both.

    Label maps are those of whole images. Where there are no labels, or the evaluation crops, they
    are written and nothing is measured.

    Args:
        cfg: Config of the run, which is changed.
        out: Folder of the label maps; None writes none.
        output: Which output they are of; ``'all'`` writes each into its own folder.
        palette: Whether they are palette PNGs in the dataset's colours.
        data_faults: See :func:`check_data`.

    Raises:
        FileNotFoundError: The data do not exist.
        ConfigError: The data do not fit the config.
        DataError: The data cannot be used, or there are no labels to measure by.
    """
    evaluators = cfg.get('test_evaluator') or []
    if isinstance(evaluators, dict):  # one, or an Evaluator of several
        evaluators = evaluators.get('metrics') or [evaluators]
    writes = out is not None or all(e.get('format_only') for e in evaluators)
    for dataset in iter_datasets(cfg.test_dataloader.dataset) if writes else ():
        prefix = dataset.get('data_prefix') or {}
        folder = osp.join(dataset.get('data_root') or '', prefix.get('seg_map_path') or '')
        if not osp.exists(folder):
            prefix.pop('seg_map_path', None)
    reason = ''
    for dataset, images in check_data(cfg, splits=('test',), data_faults=data_faults):
        why = why_unlabelled(dataset, images)
        steps = list(map(name_of, iter_transforms(dataset.get('pipeline'))))
        if why and not writes and any(map(needs_labels, evaluators)):
            raise DataError(
                f'the test split cannot be measured: {why}; name the labels in the config, or give '
                '--out DIR to write label maps only.'
            )
        if not why and writes and 'EvalCenterCrop' in steps:
            why = 'the evaluation crops (EvalCenterCrop); run without --out for the figures'
        if why:
            dataset['pipeline'] = without_labels(dataset['pipeline'])
        reason = reason or why
    if reason:
        print(f'Images are taken whole, and nothing is measured: {reason}.')
    if out is not None:
        wanted: dict[str, Any] = dict(output_dir=out)
        if output == 'all':
            wanted['outputs'] = 'all'
        if palette:
            wanted['palette'] = True
        if reason:
            wanted['format_only'] = True
        writer = choose_writer(evaluators, wanted)
        others = [e for e in evaluators if e is not writer and not reason]
        cfg.test_evaluator = [*others, writer]


def why_unlabelled(dataset: Any, images: list[dict[str, Any]]) -> str:
    """Say why the images of a dataset come without labels; nothing if they may have some."""
    loaders = [step for step in iter_transforms(dataset.get('pipeline')) if may_load_labels(step)]
    if 'pipeline' in dataset and not loaders:
        return 'its pipeline loads no labels (LoadAnnotations)'
    if {'LoadAnnotations', 'LoadSegAnnotations'}.isdisjoint(map(name_of, loaders)):
        return ''
    labels = [image['seg_map_path'] for image in images if image.get('seg_map_path')]
    if any(map(osp.exists, labels)):
        return ''
    where = f'such as {labels[0]}' if labels else 'and data_prefix.seg_map_path names no folder'
    return f'none of its images has a label, {where}'


def is_known(part: Any, registry: Registry) -> bool:
    """Whether the class of a part of the config is of mmcv, mmseg or this project."""
    package = getattr(class_of(part, registry), '__module__', '').partition('.')[0]
    return package in ('mmcv', 'mmseg', 'mmseg_coop')


def may_load_labels(step: Any) -> bool:
    """Whether a transform loads labels, as far as is known: one from elsewhere may."""
    name = name_of(step)
    loads = 'Annotation' in name or name == 'LoadBiomedicalData'
    return loads or not is_known(step, TRANSFORMS)


def needs_labels(evaluator: Any) -> bool:
    """Whether an evaluator needs labels, as far as is known: one from elsewhere may not."""
    return is_known(evaluator, METRICS) and not evaluator.get('format_only')


def without_labels(pipeline: Any) -> list[Any]:
    """Pipeline for whole images: it loads nothing to compare with, and crops nothing for that."""
    kept: list[Any] = []
    for step in pipeline:
        if isinstance(step, (list, tuple)):
            kept += filter(None, [without_labels(step)])
        elif 'transforms' in step:
            kept.append({**step, 'transforms': without_labels(step['transforms'])})
        elif 'Annotation' not in name_of(step) and name_of(step) != 'EvalCenterCrop':
            kept.append(step)
    return kept


def choose_writer(evaluators: list[Any], wanted: dict[str, Any]) -> Any:
    """Let the first evaluator that takes these arguments write label maps, or else a new one."""
    for evaluator in evaluators:
        if wanted.keys() <= constructor_keys(class_of(evaluator, METRICS)).known.keys():
            evaluator.update(wanted)
            return evaluator
    return dict(wanted, type='CoopIoUMetric', format_only=True)
