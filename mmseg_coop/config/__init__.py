"""Configs: loaded, settled and checked before anything is built from them."""

from .build_errors import config_errors
from .check import check_config
from .load import forget_pretrained, image_size, load_config

__all__ = ['check_config', 'config_errors', 'forget_pretrained', 'image_size', 'load_config']
