"""Train a model."""

from __future__ import annotations

import argparse
import os.path as osp
import sys

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import find_latest_checkpoint

from mmseg_coop.errors import CoopError
from mmseg_coop.utils import (
    add_run_arguments,
    build_runner,
    check_data,
    config_errors,
    export_local_rank,
    load_config,
    lock_work_dir,
    set_data_faults,
    short_errors,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT, or without it from the latest checkpoint of the work '
        'directory (from the start if there is none)',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during the training'
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
    if args.no_validate:
        for key in ('val_cfg', 'val_dataloader', 'val_evaluator'):
            cfg.pop(key, None)
    if args.resume is not None:
        file = find_latest_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
        if file is not None:  # otherwise it starts as the config says
            if '://' not in file and not osp.isfile(file):
                raise FileNotFoundError(f'--resume: checkpoint {file!r} does not exist.')
            cfg.resume, cfg.load_from = True, file
    if args.amp:
        if get_device() == 'cpu':
            raise ValueError(
                '--amp needs an accelerator: mmengine has no mixed precision on the CPU. Leave it '
                'out.'
            )
        wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
        if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ValueError(
                f'--amp replaces OptimWrapper, but the config has optim_wrapper.type={wrapper!r}; '
                'set mixed precision in the config.'
            )
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    splits = ('train',) if args.no_validate else ('train', 'val')
    check_data(cfg, splits=splits, data_faults=args.data_faults)
    set_data_faults(cfg, splits, args.data_faults)
    return cfg


def main() -> None:
    """Train."""
    args = parse_args()
    export_local_rank(args)
    with short_errors():
        cfg = prepare(args)
        lock = lock_work_dir(cfg)
        runner = build_runner(cfg)
    try:
        with lock, config_errors(cfg):
            runner.train()
    except CoopError as error:  # it says all there is to say
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
