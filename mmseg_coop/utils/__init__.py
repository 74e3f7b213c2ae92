"""Utilities of the tools.

``register_all_modules`` is mmseg's: mmengine looks for it here when it enters our scope.
"""

from mmseg.utils import register_all_modules

from .cli import add_run_arguments, export_local_rank, short_errors
from .config import forget_pretrained, load_config
from .data_check import check_data
from .launch import build_runner

__all__ = [
    'add_run_arguments',
    'build_runner',
    'check_data',
    'export_local_rank',
    'forget_pretrained',
    'load_config',
    'register_all_modules',
    'short_errors',
]
