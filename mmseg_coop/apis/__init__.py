"""What the tools do, as functions: train, test, load a trained model."""

from .console import Console
from .data_check import check_data
from .launch import build_runner, lock_work_dir
from .model import build_model, load_model, require_file
from .testing import prepare_test, test
from .training import prepare_training, train

__all__ = [
    'Console',
    'build_model',
    'build_runner',
    'check_data',
    'load_model',
    'lock_work_dir',
    'prepare_test',
    'prepare_training',
    'require_file',
    'test',
    'train',
]
