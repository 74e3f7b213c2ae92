"""What the tools do, as functions: train, test, predict, export, load a trained model."""

from .console import Console
from .convert import convert_checkpoint, publish_checkpoint
from .coop_model import CoopModel
from .create import create_model, list_models
from .data_check import check_data
from .export import export_onnx
from .extract import extract_network
from .launch import build_runner, lock_work_dir
from .model import build_model, load_model, require_file
from .optimize import optimize_for_inference
from .predict import Predictor, predict_images, predict_video
from .testing import prepare_test, test
from .training import prepare_training, train

__all__ = [
    'Console',
    'CoopModel',
    'Predictor',
    'build_model',
    'build_runner',
    'check_data',
    'convert_checkpoint',
    'create_model',
    'export_onnx',
    'extract_network',
    'list_models',
    'load_model',
    'lock_work_dir',
    'optimize_for_inference',
    'predict_images',
    'predict_video',
    'prepare_test',
    'prepare_training',
    'publish_checkpoint',
    'require_file',
    'test',
    'train',
]
