from __future__ import annotations

import contextlib
import io
import os
import random
import runpy
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.visualization import Visualizer

from mmseg_coop.visualization import CoopLocalVisualizer
from mmseg_coop_cli import program

ROOT = Path(__file__).resolve().parents[1]

try:
    from hypothesis import settings
except ImportError:  # what needs it is skipped
    pass
else:
    # The same examples in every run, few enough for every run; a slow machine is no failure.
    settings.register_profile('repeatable', derandomize=True, deadline=None, max_examples=15)
    settings.load_profile('repeatable')


@pytest.fixture(autouse=True)
def _clean_start():
    """Every test starts in mmseg's scope and from the same random state."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # what mmcv draws from
    torch.manual_seed(0)
    init_default_scope('mmseg')
    yield
    forget_runs()


def forget_runs():
    """Remove what runners leave behind in the process."""
    # Visualizer knows the instances of its subclasses as well.
    for manager in (DefaultScope, MMLogger, MessageHub, CoopLocalVisualizer, Visualizer):
        manager._instance_dict.clear()


@pytest.fixture(scope='session')
def tool():
    """Call a tool's ``main`` in this process, as far as it shows like a program of its own.

    ``tool('tools/test.py', 'config.py', …)`` returns what it printed and its exit code; ``cwd`` is
    the folder it is called from. A fault of the program, as against one of the user, raises.
    """

    def call(path, *words, cwd=None):
        out, err, code = io.StringIO(), io.StringIO(), 0
        kept = os.getcwd(), dict(os.environ), random.getstate(), torch.get_rng_state()
        forget_runs()
        try:
            os.chdir(cwd or kept[0])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                module = runpy.run_path(str(ROOT / path))
                program(lambda: module['main']([str(word) for word in words]))
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
            if isinstance(exit.code, str):
                err.write(f'{exit.code}\n')
        finally:
            os.chdir(kept[0])
            os.environ.clear()
            os.environ.update(kept[1])
            random.setstate(kept[2])
            torch.set_rng_state(kept[3])
            torch.use_deterministic_algorithms(False)
            forget_runs()
        return subprocess.CompletedProcess([path, *words], code, out.getvalue(), err.getvalue())

    return call


#: Tiny backbones that end in different channels.
BACKBONES = dict(
    resnet=dict(
        type='ResNetV1c',
        depth=18,
        stem_channels=8,
        base_channels=8,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        out_indices=(0, 3),
    ),
    mobilenet=dict(type='MobileNetV2', widen_factor=0.25, out_indices=(1, 6)),
)
#: in_channels and low_level_in_channels of their heads.
CHANNELS = dict(resnet=(64, 8), mobilenet=(80, 8))


@pytest.fixture
def coop_model_cfg():
    """Config of a tiny cooperative DeepLabV3+.

    Names of networks map to names of backbones; further arguments go to the head, ``test_cfg`` to
    the model.
    """

    def make(networks=None, *, num_classes=4, test_cfg=None, **head):
        networks = networks or dict(top='resnet', bottom='mobilenet')
        heads = {}
        for name, backbone in networks.items():
            in_channels, low_level_in_channels = CHANNELS[backbone]
            heads[name] = dict(in_channels=in_channels, low_level_in_channels=low_level_in_channels)
        return dict(
            type='CrossCoopEncoderDecoder',
            data_preprocessor=dict(
                type='SegDataPreProcessor',
                mean=[123.675, 116.28, 103.53],
                std=[58.395, 57.12, 57.375],
                bgr_to_rgb=True,
                size=(64, 64),
            ),
            backbone=dict(
                type='CoopBackbone',
                networks={name: dict(BACKBONES[backbone]) for name, backbone in networks.items()},
            ),
            decode_head=dict(
                type='CrossCoopASPPHead',
                **{
                    **dict(
                        networks=heads,
                        channels=16,
                        dilations=(1, 2, 3, 4),
                        num_classes=num_classes,
                    ),
                    **head,
                },
            ),
            test_cfg=test_cfg or dict(mode='whole'),
        )

    return make


@pytest.fixture
def train_batch():
    """A batch of two images with labels, as the data preprocessor takes it."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    def make(size=(64, 64), *, num_classes=4, batch_size=2):
        inputs, samples = [], []
        for index in range(batch_size):
            inputs.append(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
            label = torch.randint(0, num_classes, (1, *size))
            label[:, :2] = 255
            sample = SegDataSample(
                metainfo=dict(
                    img_path=f'{index}.png', ori_shape=size, img_shape=size, pad_shape=size
                )
            )
            sample.gt_sem_seg = PixelData(data=label)
            samples.append(sample)
        return dict(inputs=inputs, data_samples=samples)

    return make
