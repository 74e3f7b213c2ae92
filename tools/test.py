"""Evaluate a checkpoint: every network's output and their ensemble in one pass."""

from __future__ import annotations

import argparse
import os.path as osp
import sys
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry
from mmseg.registry import DATASETS, METRICS, TRANSFORMS

from mmseg_coop.errors import CoopError
from mmseg_coop.utils import (
    add_run_arguments,
    build_runner,
    check_data,
    config_errors,
    export_local_rank,
    forget_pretrained,
    load_config,
    set_data_faults,
    short_errors,
)
from mmseg_coop.utils.leaf_datasets import leaf_datasets
from mmseg_coop.utils.signatures import constructor_keys


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--output',
        metavar='NAME',
        help="which output is the prediction: a network's name (e.g. top, bottom) or ensemble; all "
        'keeps the one of the config and writes every one with --out',
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='write the label maps of whole images as PNG; with --output all each output into its '
        'own folder',
    )
    parser.add_argument(
        '--palette',
        action='store_true',
        help="write them as palette PNG in the dataset's colours, as VOC's evaluation server wants",
    )
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='write pictures of input, ground truth and all outputs side by side',
    )
    parser.add_argument('--show', action='store_true', help='show the pictures in a window')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds a shown picture stays; default: 2'
    )
    parser.add_argument(
        '--tta', action='store_true', help='average over the augmentations of tta_pipeline'
    )
    args = parser.parse_args()
    if args.palette and args.out is None:
        parser.error('--palette is about the label maps that --out DIR writes')
    return args


def prepare(args: argparse.Namespace) -> Config:
    """Turn the command line into the config of the run.

    Args:
        args: The command line.

    Returns:
        The config.

    Raises:
        FileNotFoundError: The config, the checkpoint or the data do not exist.
        ValueError: An option does not fit the config.
    """
    cfg = load_config(args.config, cfg_options=args.cfg_options, work_dir=args.work_dir)
    cfg.launcher = args.launcher
    if '://' not in args.checkpoint and not osp.isfile(args.checkpoint):
        raise FileNotFoundError(f'checkpoint {args.checkpoint!r} does not exist.')
    cfg.load_from = args.checkpoint
    # The checkpoint brings all weights: pretrained ones need not be there.
    forget_pretrained(cfg.model)
    if args.output not in (None, 'all'):
        cfg.model.setdefault('test_cfg', {})['output'] = args.output
    if args.tta:
        if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
            raise ValueError(f'--tta needs tta_pipeline and tta_model, which {args.config} lacks.')
        for dataset in leaf_datasets(cfg.test_dataloader.dataset):
            dataset.pipeline = cfg.tta_pipeline
    prepare_data(cfg, args)
    # A test needs no training data; mmseg 1.2 would build them to number its pictures.
    for key in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler'):
        cfg.pop(key, None)
    if args.show or args.show_dir:
        hook = cfg.default_hooks.setdefault('visualization', dict(type='SegVisualizationHook'))
        # mmseg 1.2 draws every 50th image unless told otherwise.
        hook.update(draw=True, interval=1, show=args.show, wait_time=args.wait_time)
        if args.show_dir:
            cfg.visualizer.save_dir = args.show_dir
    if args.tta:
        cfg.model = dict(**cfg.tta_model, module=cfg.model)
    set_data_faults(cfg, ('test',), args.data_faults)
    return cfg


def prepare_data(cfg: Config, args: argparse.Namespace) -> None:
    """Check the data, and settle whether they are measured, their label maps written, or both.

    Label maps are those of whole images. Where there are no labels, or the evaluation crops, they
    are written and nothing is measured.

    Args:
        cfg: Config of the run, which is changed.
        args: The command line.

    Raises:
        FileNotFoundError: The data do not exist.
        ValueError: The data do not fit the config, or what they are measured by is missing.
    """
    evaluators = cfg.get('test_evaluator') or []
    if isinstance(evaluators, dict):  # one, or an Evaluator of several
        evaluators = evaluators.get('metrics') or [evaluators]
    writes = args.out is not None or all(e.get('format_only') for e in evaluators)
    datasets = list(leaf_datasets(cfg.test_dataloader.dataset))
    for dataset in datasets if writes else ():
        prefix = dataset.get('data_prefix') or {}
        folder = osp.join(dataset.get('data_root') or '', prefix.get('seg_map_path') or '')
        if not osp.exists(folder):
            prefix.pop('seg_map_path', None)
    check_data(cfg, splits=('test',), data_faults=args.data_faults)
    reason = ''
    for dataset in datasets:
        why = why_unlabelled(dataset)
        if why and not writes and any(map(needs_labels, evaluators)):
            raise ValueError(
                f'the test split cannot be measured: {why}; name the labels in the config, or give '
                '--out DIR to write label maps only.'
            )
        if not why and writes and 'EvalCenterCrop' in map(name_of, steps(dataset.pipeline)):
            why = 'the evaluation crops (EvalCenterCrop); run without --out for the figures'
        if why:
            dataset.pipeline = without_labels(dataset.pipeline)
        reason = reason or why
    if reason:
        print(f'Images are taken whole, and nothing is measured: {reason}.')
    if args.out is not None:
        writer = choose_writer(evaluators, args, format_only=bool(reason))
        others = [e for e in evaluators if e is not writer and not reason]
        cfg.test_evaluator = [*others, writer]


def why_unlabelled(dataset: Any) -> str:
    """Say why the images of a dataset come without labels; nothing if they may have some."""
    loaders = [step for step in steps(dataset.get('pipeline')) if may_load_labels(step)]
    if 'pipeline' in dataset and not loaders:
        return 'its pipeline loads no labels (LoadAnnotations)'
    if {'LoadAnnotations', 'LoadSegAnnotations'}.isdisjoint(map(name_of, loaders)):
        return ''
    images = DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []}).load_data_list()
    labels = [image['seg_map_path'] for image in images if image.get('seg_map_path')]
    if any(map(osp.exists, labels)):
        return ''
    where = f'such as {labels[0]}' if labels else 'and data_prefix.seg_map_path names no folder'
    return f'none of its images has a label, {where}'


def steps(part: Any) -> Iterator[Any]:
    """Find the transforms of a pipeline, also those inside of others."""
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from steps(item)
    elif isinstance(part, dict):
        if 'type' in part:
            yield part
        for item in part.values():
            yield from steps(item)


def name_of(part: Any) -> str:
    """Name of the class of a part of the config."""
    kind = part['type']
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def package_of(part: Any, registry: Registry) -> str:
    """Package that the class of a part of the config comes from."""
    kind = part['type']
    kind = registry.get(kind) if isinstance(kind, str) else kind
    return getattr(kind, '__module__', '').partition('.')[0]


def may_load_labels(step: Any) -> bool:
    """Whether a transform loads labels, as far as is known: one from elsewhere may."""
    known = package_of(step, TRANSFORMS) in ('mmcv', 'mmseg', 'mmseg_coop')
    return not known or 'Annotation' in name_of(step) or name_of(step) == 'LoadBiomedicalData'


def needs_labels(evaluator: Any) -> bool:
    """Whether an evaluator needs labels, as far as is known: one from elsewhere may not."""
    known = package_of(evaluator, METRICS) in ('mmseg', 'mmseg_coop')
    return known and not evaluator.get('format_only')


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


def choose_writer(evaluators: list[Any], args: argparse.Namespace, *, format_only: bool) -> Any:
    """Let the first evaluator that can write the label maps do it, or else a new one.

    Args:
        evaluators: Configs of the evaluators.
        args: The command line.
        format_only: Whether it measures nothing.

    Returns:
        Its config.
    """
    wanted: dict[str, Any] = dict(output_dir=args.out)
    if args.output == 'all':
        wanted['outputs'] = 'all'
    if args.palette:
        wanted['palette'] = True
    if format_only:
        wanted['format_only'] = True
    for evaluator in evaluators:
        kind = evaluator['type']
        kind = METRICS.get(kind) if isinstance(kind, str) else kind
        if wanted.keys() <= constructor_keys(kind).known.keys():
            evaluator.update(wanted)
            return evaluator
    return dict(wanted, type='CoopIoUMetric', format_only=True)


def main() -> None:
    """Evaluate."""
    args = parse_args()
    export_local_rank(args)
    with short_errors():
        cfg = prepare(args)
        runner = build_runner(cfg)
    try:
        with config_errors(cfg):
            runner.test()
    except CoopError as error:  # it says all there is to say
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
