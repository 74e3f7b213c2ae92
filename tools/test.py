"""Evaluate a checkpoint: every network's output and their ensemble in one pass."""

from __future__ import annotations

import argparse
import os.path as osp
import sys

from mmengine.config import Config

from mmseg_coop.datasets import DataFault
from mmseg_coop.engine import CheckpointError
from mmseg_coop.utils import (
    ConfigError,
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
        help='write the label maps as PNG; with --output all each output into its own folder',
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
    return parser.parse_args()


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
    # A test needs no training data; mmseg 1.2 would build them to number its pictures.
    for key in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler'):
        cfg.pop(key, None)
    # The checkpoint brings all weights: pretrained ones need not be there.
    forget_pretrained(cfg.model)
    check_data(cfg, splits=('test',), data_faults=args.data_faults)
    if args.output not in (None, 'all'):
        cfg.model.setdefault('test_cfg', {})['output'] = args.output
    if args.out is not None:
        cfg.test_evaluator.output_dir = args.out
        if args.output == 'all':
            cfg.test_evaluator.outputs = 'all'
    if args.show or args.show_dir:
        hook = cfg.default_hooks.setdefault('visualization', dict(type='SegVisualizationHook'))
        # mmseg 1.2 draws every 50th image unless told otherwise.
        hook.update(draw=True, interval=1, show=args.show, wait_time=args.wait_time)
        if args.show_dir:
            cfg.visualizer.save_dir = args.show_dir
    if args.tta:
        if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
            raise ValueError(f'--tta needs tta_pipeline and tta_model, which {args.config} lacks.')
        for dataset in leaf_datasets(cfg.test_dataloader.dataset):
            dataset.pipeline = cfg.tta_pipeline
        cfg.model = dict(**cfg.tta_model, module=cfg.model)
    set_data_faults(cfg, ('test',), args.data_faults)
    return cfg


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
    except (ConfigError, CheckpointError, DataFault) as error:  # it says all there is to say
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
