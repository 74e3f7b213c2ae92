from __future__ import annotations

import contextlib
import copy
import functools
import gc
import io
import os
import random
import subprocess
from pathlib import Path
from types import SimpleNamespace

import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.structures import PixelData
from mmengine.utils.dl_utils import mmcv_full_available
from mmengine.visualization import Visualizer
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_coop.config import forget_pretrained
from mmseg_coop.datasets import CamVidDataset
from mmseg_coop.visualization import CoopLocalVisualizer
from mmseg_coop_cli import load_tool, program

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'

#: Where mmengine takes yapf's layout from, in the one stack and in the other.
LAYOUT = ('yapf.yapflib.yapf_api.FormatCode', 'mmengine.config.config.FormatCode')


def pytest_collection_finish():
    """Spare the collector of garbage what is imported: mmengine calls it for every dataset."""
    gc.collect()
    gc.freeze()


def quicken(patch):
    """Spare trainings what costs time and is not tested, in this process.

    Mmengine looks for mmcv's ops once, not a layer, leaves garbage to Python, logs no line a
    parameter, and builds optimizers from plain dictionaries, since PyTorch compares each group of
    parameters with all others. It reads each config of this project and of mmseg once, and lays
    out none that it writes. Nothing has to be on the disk before a test goes on, and none asks
    which commit it is.
    """
    has_ops = mmcv_full_available()
    constructor = 'mmengine.optim.optimizer.default_constructor'
    for place in (constructor, 'mmengine.model.utils'):
        patch.setattr(f'{place}.mmcv_full_available', lambda: has_ops)
    patch.setattr(f'{constructor}.print_log', lambda *_, **__: None)
    patch.setattr('mmengine.dataset.base_dataset.gc', SimpleNamespace(collect=lambda: 0))
    patch.setattr(
        'mmengine.runner.runner.build_optim_wrapper',
        lambda model, cfg: build_optim_wrapper(model, ConfigDict(cfg).to_dict()),
    )
    read, known = Config._file2dict, {}
    kept = str(ROOT / 'configs'), str(Path(mmseg.__file__).parent)

    def read_once(filename, *options, **named):
        if not str(filename).startswith(kept):
            return read(filename, *options, **named)
        key = str(filename), options, tuple(named.items())
        if key not in known:
            known[key] = read(filename, *options, **named)
        return copy.deepcopy(known[key])

    patch.setattr(Config, '_file2dict', read_once)
    for place in LAYOUT:
        patch.setattr(place, lambda text, **_: (text, True), raising=False)
    patch.setattr(os, 'fsync', lambda _: None)
    patch.setattr('mmengine.runner.runner.get_git_hash', lambda: '')


@pytest.fixture(scope='session', autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield


@pytest.fixture
def device(pytestconfig):
    """CUDA where tests were asked for by their mark ``cuda``, otherwise the CPU.

    On the CPU they work at miniature size. What they leave on a GPU is freed.
    """
    if pytestconfig.option.markexpr != 'cuda':
        yield torch.device('cpu')
        return
    if not torch.cuda.is_available():
        pytest.skip('PyTorch finds no CUDA device here')
    yield torch.device('cuda')
    gc.collect()
    torch.cuda.empty_cache()


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
                main = load_tool(ROOT / path).main
                program(lambda: main([str(word) for word in words]))
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
            init_default_scope('mmseg')  # as tests find it
        return subprocess.CompletedProcess([path, *words], code, out.getvalue(), err.getvalue())

    return call


class Here:
    """Stands for a process of a study; what it does is done before it is looked at."""

    def __init__(self, tool, command, log, code=None):
        done = tool(str(Path(command[1]).relative_to(ROOT)), *command[2:])
        log.write(done.stdout + done.stderr)
        self.code = done.returncode if code is None else code

    def poll(self):
        return self.code

    def terminate(self):
        self.code = -15

    def wait(self):
        assert self.code is not None


@pytest.fixture(scope='session')
def run_tool(tool):
    """Call a tool that has to end with the exit code ``code``.

    Returns what it printed or, where it fails, the line that it ends with.
    """

    def call(path, *words, cwd=None, code=0):
        done = tool(path, *words, cwd=cwd)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr.strip().splitlines()[-1] if code else done.stdout

    return call


@pytest.fixture(scope='session')
def mini_data(run_tool, tmp_path_factory):
    """Draw a miniature dataset, each once a process; returns its folder, to be left as it is."""

    @functools.cache
    def draw(layout='camvid', *, train=8, val=3, size='64x64'):
        out = tmp_path_factory.mktemp('mini') / layout
        words = ('--layout', layout, '--train', train, '--val', val, '--size', size, '--out', out)
        run_tool('tools/dataset_converters/make_mini_dataset.py', *words)
        return out

    return draw


@pytest.fixture(scope='session')
def run_options():
    """Options for a run of a few iterations in one process, as words behind ``--cfg-options``."""

    def options(data_root, *more):
        splits = ('train', 'val', 'test')
        return [
            '--cfg-options',
            *(f'{split}_dataloader.dataset.data_root={data_root}' for split in splits),
            *(f'{split}_dataloader.num_workers=0' for split in splits),
            *(f'{split}_dataloader.persistent_workers=False' for split in splits),
            'train_dataloader.batch_size=2',
            'train_cfg.max_iters=4',
            'train_cfg.val_interval=2',
            'default_hooks.checkpoint.interval=1',
            'default_hooks.logger.interval=1',
            'param_scheduler.0.end=4',
            *more,
        ]

    return options


@pytest.fixture(scope='session')
def trained(tool, mini_data, run_options, tmp_path_factory):
    """Work directory of a pair that was trained for four iterations, and what this printed."""
    folder = tmp_path_factory.mktemp('trained')
    done = tool('tools/train.py', MINI, '--work-dir', folder, *run_options(mini_data()), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def write_mini_with(file, *steps):
    """Write the miniature config with further steps in the test pipeline, ahead of the packing."""
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    pipeline = [*load, *steps, dict(type='PackSegInputs')]
    file.write_text(
        f'_base_ = {str(MINI)!r}\ntest_pipeline = {pipeline}\n'
        'test_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n'
    )
    return file


@pytest.fixture(scope='session')
def untrained():
    """Write a checkpoint with random weights whose classes differ from pixel to pixel."""

    def write(config, file, options=None, **content):
        cfg = config if isinstance(config, Config) else Config.fromfile(config)
        cfg.merge_from_dict(options or {})
        forget_pretrained(cfg.model)
        init_default_scope('mmseg')  # fixtures of a session come before those of a test
        torch.manual_seed(1)
        model = MODELS.build(cfg.model)
        for name, parameter in model.named_parameters():
            if 'conv_seg' in name:
                torch.nn.init.normal_(parameter, std=2)
        torch.save(dict(state_dict=model.state_dict(), **content), file)
        return file

    return write


@pytest.fixture(scope='session')
def untrained_mini(untrained, tmp_path_factory):
    """A checkpoint of the miniature pair as mmseg's interfaces take it, with random weights."""
    return untrained(
        MINI,
        tmp_path_factory.mktemp('untrained') / 'model.pth',
        meta=dict(dataset_meta=dict(CamVidDataset.METAINFO)),
        message_hub=dict(runtime_info=dict(cfg=Config.fromfile(MINI).pretty_text)),
    )


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


def shrink_networks(model):
    """Give a config's model tiny backbones in place of deep ones, and heads that fit, in place."""
    head = model.decode_head
    heads, networks = head.get('networks'), model.backbone.get('networks')
    for name, network in (networks or dict(backbone=model.backbone)).items():
        if network.get('depth', 0) > 18:
            levels = {1: (3,), 2: (0, 3)}.get(len(network.out_indices), (0, 1, 2, 3))
            (networks or model)[name] = dict(BACKBONES['resnet'], out_indices=levels)
            part = heads[name] if heads else head
            part.in_channels, low_level = CHANNELS['resnet']
            if len(levels) == 2:
                part.low_level_in_channels = low_level
    head.channels = 32


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
        head = dict(dict(networks=heads, channels=16, dilations=(1, 2, 3, 4)), **head)
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
            decode_head=dict(type='CrossCoopASPPHead', num_classes=num_classes, **head),
            test_cfg=test_cfg or dict(mode='whole'),
        )

    return make


def labelled(count, size, *, num_classes=3):
    """Samples with a label each, whose first row is ignored."""
    samples = []
    for index in range(count):
        label = torch.randint(0, num_classes, (1, *size))
        label[:, 0] = 255
        shapes = dict(img_shape=size, pad_shape=size, ori_shape=size)
        sample = SegDataSample(metainfo=dict(img_path=f'{index}.png', **shapes))
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
    return samples


@pytest.fixture
def train_batch():
    """A batch of two images with labels, as the data preprocessor takes it."""

    def make(size=(64, 64), *, num_classes=4, batch_size=2, channels=3):
        images = torch.randint(0, 256, (batch_size, channels, *size), dtype=torch.uint8)
        samples = labelled(batch_size, size, num_classes=num_classes)
        return dict(inputs=list(images), data_samples=samples)

    return make
