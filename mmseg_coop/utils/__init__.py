"""Utilities of the tools.

``register_all_modules`` is mmseg's: mmengine looks for it here when it enters our scope.
"""

from mmseg.utils import register_all_modules

from .build_errors import config_errors
from .cli import add_run_arguments, export_local_rank, short_errors
from .config import forget_pretrained, image_size, load_config
from .config_check import check_config
from .data_check import check_data
from .data_faults import set_data_faults
from .launch import build_runner, lock_work_dir

__all__ = [
    'add_run_arguments',
    'build_runner',
    'check_config',
    'check_data',
    'config_errors',
    'export_local_rank',
    'forget_pretrained',
    'image_size',
    'load_config',
    'lock_work_dir',
    'register_all_modules',
    'set_data_faults',
    'short_errors',
]
