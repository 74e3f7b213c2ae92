"""What the command lines of train and test share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import DictAction


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every run takes, named as mmseg names them.

    Args:
        parser: Parser of the tool.
    """
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='where the run writes; default: work_dirs/NAME_OF_CONFIG'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override values of the config, e.g. train_dataloader.batch_size=2 '
        'model.test_cfg.crop_size="(513,513)"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how several processes were started; default: none',
    )
    parser.add_argument(
        '--data-faults',
        choices=['stop', 'skip'],
        default='stop',
        help='what a file that cannot be used does: stop the run, or be left out and counted; '
        'default: stop',
    )
    # torch.distributed.launch passes it as an argument, torchrun as an environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def export_local_rank(args: argparse.Namespace) -> None:
    """Hand the local rank to mmengine, which looks for it in the environment.

    Args:
        args: Arguments from :func:`add_run_arguments`.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


@contextmanager
def short_errors() -> Iterator[None]:
    """End with one line where the user gave a wrong path or value, instead of a traceback.

    Only what reads the user's input belongs inside; faults of the run itself keep their traceback.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, FileExistsError, ValueError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        sys.exit(f'error: {message}')
