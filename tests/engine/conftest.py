from __future__ import annotations

import pytest
from mmengine.config import Config

from tests.conftest import MINI


@pytest.fixture(scope='session')
def scenes(mini_data):
    """Eight images to train with and seven to validate with, 64x64."""
    return mini_data(val=7)


@pytest.fixture(scope='session')
def small_options(scenes):
    """What makes a training with the mini config small; a function of further options."""

    def make(**options):
        splits = ('train', 'val', 'test')
        return {
            **{f'{split}_dataloader.dataset.data_root': str(scenes) for split in splits},
            **{f'{split}_dataloader.num_workers': 0 for split in splits},
            **{f'{split}_dataloader.persistent_workers': False for split in splits},
            'val_dataloader.dataset.indices': 2,
            'train_dataloader.batch_size': 2,
            'train_dataloader.dataset.pipeline.3.crop_size': (32, 32),
            'model.data_preprocessor.size': (32, 32),
            'model.backbone.networks.top.stem_channels': 8,
            'model.backbone.networks.top.base_channels': 8,
            'model.backbone.networks.bottom.widen_factor': 0.25,
            'model.decode_head.networks.top.in_channels': 64,
            'model.decode_head.networks.top.low_level_in_channels': 8,
            'model.decode_head.networks.bottom.in_channels': 80,
            'model.decode_head.networks.bottom.low_level_in_channels': 8,
            'default_hooks.logger.interval': 1,
            'randomness.seed': 0,
            **options,
        }

    return make


@pytest.fixture(scope='session')
def small_words(small_options):
    """The same as words of a command line."""

    def make(**options):
        return '--cfg-options', *(f'{k}={v}' for k, v in small_options(**options).items())

    return make


@pytest.fixture(scope='session')
def small_cfg(small_options):
    """Config of a small training in a folder; options in the manner of ``--cfg-options``."""

    def make(folder, **options):
        cfg = Config.fromfile(MINI)
        cfg.merge_from_dict(small_options(**options))
        cfg.work_dir = str(folder)
        cfg.experiment_name = f'{folder.parent.name}_{folder.name}'  # loggers are kept by name
        return cfg

    return make
