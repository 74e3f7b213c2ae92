"""Every key of a config is misspelt and gets values of wrong sorts: an error has to name it."""

from __future__ import annotations

import copy
import functools
import re
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

from mmseg_coop.apis import build_runner, check_data
from mmseg_coop.config import check_config, config_errors, forget_pretrained, load_config
from mmseg_coop.config.class_check import check_classes
from mmseg_coop.config.ignore_index import settle_ignore_index
from mmseg_coop.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = dict(
    cross_coop='cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py',
    dpanet='dpanet/dpanet_mnv2-d8_1xb6-2k_camvid-180x240.py',
)
PARTS = (
    *('model', 'tta_model', 'train_dataloader', 'val_dataloader', 'val_evaluator', 'visualizer'),
    *('train_cfg', 'optim_wrapper', 'param_scheduler', 'default_hooks', 'custom_hooks'),
)
#: What mmcv refuses with the first image only, and without naming it.
SILENT = ('RandomResize.ratio_range', 'RandomResize.scale', 'Resize.scale')
#: What each value is replaced by.
WRONG = ('abc', None, [], {}, ['abc'], dict(a=1), -1, 0, -2.5, 7)


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    out = tmp_path_factory.mktemp('camvid') / 'data'
    subprocess.run(
        [
            *(sys.executable, ROOT / 'tools/dataset_converters/make_mini_dataset.py'),
            *('--layout', 'camvid', '--out', out),
            *('--train', '2', '--val', '1', '--size', '64x64'),
        ],
        check=True,
        capture_output=True,
    )
    return out


def base(name, data_root):
    """A config that trains one iteration on tiny images, as plain dictionaries."""
    cfg = Config.fromfile(ROOT / 'configs' / CONFIGS[name])._cfg_dict.to_dict()
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader['dataset']['data_root'] = str(data_root)
    cfg['train_dataloader']['batch_size'] = 2
    cfg['train_cfg'].update(max_iters=1, val_interval=1)
    cfg['model']['data_preprocessor']['size'] = (64, 64)
    for transform in cfg['train_dataloader']['dataset']['pipeline']:
        if transform['type'] == 'RandomCrop':
            transform['crop_size'] = (64, 64)
        if 'scale' in transform:
            transform['scale'] = (64, 64)
    forget_pretrained(cfg['model'])
    return dict(cfg, launcher='none', log_level='ERROR')


def leaves(part, path):
    """Every dotted path into a part of a config, that of the part first."""
    yield path
    items = enumerate(part) if isinstance(part, list) else ()
    items = part.items() if isinstance(part, dict) else items
    for key, value in items:
        yield from leaves(value, (*path, key))


def at(cfg, path):
    for key in path:
        cfg = cfg[key]
    return cfg


def mutations(cfg):
    """Every mutation: what was done, the path to where, and the config."""
    for part in PARTS:
        for path in leaves(cfg[part], (part,)):
            *parent, key = path
            old = at(cfg, path)
            if parent and isinstance(key, str):
                mutated = copy.deepcopy(cfg)
                place = at(mutated, parent)
                place[key + 'x'] = place.pop(key)
                yield 'misspelt', (*parent, key + 'x'), mutated
            for wrong in WRONG:
                if wrong != old or type(wrong) is not type(old):
                    mutated = copy.deepcopy(cfg)
                    at(mutated, parent)[key] = copy.deepcopy(wrong)
                    yield repr(wrong), path, mutated


def is_named(path, message):
    """Whether a message names a key, or with its dotted path the part that it belongs to."""
    key = next(key for key in reversed(path) if isinstance(key, str))
    part = '.'.join(str(key) for key in path[:-1])
    network = path[path.index('networks') + 1] if 'networks' in path[:-1] else None
    return (
        key.removesuffix('x') in message
        or (part != '' and part in message)
        or (network is not None and f'network {network!r}' in message)
    )


@functools.cache
def left_over(name, data_root):
    """Mutations that nothing is said about before building, and how many there are in all."""
    left, count = [], 0
    for what, path, cfg in mutations(base(name, data_root)):
        count += 1
        message = None
        try:
            check_config(cfg)
        except ConfigError as error:
            message = str(error)
        if message is None:
            left.append((what, path, cfg))
        else:
            assert is_named(path, message), (what, path, message)
    return left, count


@pytest.mark.parametrize('name', CONFIGS)
def test_four_of_five_mutations_are_refused_by_name_before_anything_is_built(name, data_root):
    left, count = left_over(name, data_root)
    assert count > 1500
    assert len(left) < count / 5


def outcome(cfg, work_dir):
    """What becomes of a training: the error that the tool shows in one line, or None if it runs."""
    cfg = Config(dict(cfg, work_dir=str(work_dir)))
    try:
        check_data(cfg, splits=('train', 'val'))
        runner = build_runner(cfg)
        with config_errors(cfg):
            runner.train()
    except (ValueError, FileNotFoundError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        assert '/torch/' not in frames[-1].filename, frames[-1]
        return str(error)
    return None


def check_outcomes(name, data_root, tmp_path, monkeypatch, *, every, offset):
    # Formatting the config for the log takes as long as all else together.
    monkeypatch.setattr(Config, 'pretty_text', property(lambda cfg: ''))
    ran, wrong = 0, []
    left = left_over(name, data_root)[0][offset::every]
    for index, (what, path, cfg) in enumerate(left):
        cfg['experiment_name'] = f'{what}-{index}'
        try:
            message = outcome(cfg, tmp_path)
        except Exception as error:
            transform = at(cfg, path[:-1]) if path[-3:-2] == ('pipeline',) else {}
            if f'{transform.get("type")}.{path[-1]}' in SILENT:
                continue
            raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
            if '/mmengine/' in raised_in and str(path[-1]) in str(error):
                continue
            wrong.append((what, path, f'{type(error).__name__}: {error}'))
            continue
        ran += message is None
        if message is not None and not is_named(path, message):
            wrong.append((what, path, message))
    assert not wrong, '\n'.join(map(str, wrong))
    return ran, len(left)


@pytest.mark.parametrize('name', CONFIGS)
def test_what_is_not_refused_runs_or_is_refused_by_name(name, data_root, tmp_path, monkeypatch):
    ran, tried = check_outcomes(name, data_root, tmp_path, monkeypatch, every=60, offset=7)
    assert 0 < ran <= tried


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('name', CONFIGS)
def test_all_that_is_not_refused_runs_or_is_refused_by_name(name, data_root, tmp_path, monkeypatch):
    ran, tried = check_outcomes(name, data_root, tmp_path, monkeypatch, every=4, offset=2)
    assert ran > tried / 4


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (
            {'model.decode_head.channelz': 32},
            'model.decode_head.channelz is unknown for CrossCoopASPPHead; did you mean channels?',
        ),
        (
            {'model.decode_head.networks.top.in_channelz': 32},
            'model.decode_head.networks.top.in_channelz is unknown for DeepLabV3PlusHead',
        ),
        (
            {'model.decode_head.channels': 'wide'},
            "model.decode_head.channels is 'wide' (str), but CrossCoopASPPHead takes channels: int",
        ),
        ({'model.backbone.networks.top.depht': 18}, 'depht is unknown for ResNetV1c'),
        ({'model.decode_head.type': 'CrossCoopASPHead'}, 'did you mean CrossCoopASPPHead'),
        ({'train_dataloader.batch_size': -2}, 'train_dataloader.batch_size is -2; give a number'),
        ({'train_cfg.val_interval': 0}, 'train_cfg.val_interval is 0; give a number from 1 on'),
        (
            {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': True},
            'train_dataloader.persistent_workers is True, but train_dataloader.num_workers is 0',
        ),
        ({'optim_wrapper.optimizer.lr': -0.1}, 'optim_wrapper.optimizer.lr is -0.1'),
        (
            {'default_hooks.checkpoint.intervalz': 5},
            'default_hooks.checkpoint.intervalz is unknown',
        ),
        ({'model.test_cfg.mode': 'slied'}, "model.test_cfg.mode is 'slied'"),
        ({'model.test_cfg': dict(mode='slide')}, 'model.test_cfg.crop_size is None'),
        (
            {'model.test_cfg': dict(mode='slide', crop_size=(32, 64), stride=(32, 65))},
            'model.test_cfg.stride is (32, 65), more than model.test_cfg.crop_size, (32, 64)',
        ),
    ],
)
def test_a_slip_is_named_with_its_path(option, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(str(ROOT / 'configs' / CONFIGS['cross_coop']), cfg_options=option)


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (
            {'model.decode_head.dropout_ratio': 2},
            "model.decode_head.dropout_ratio=2 (CrossCoopASPPHead): network 'top': dropout_ratio=2 "
            'is no fraction',
        ),
        ({'model.test_cfg.output': 'left'}, "model.test_cfg={'mode': 'whole', 'output': 'left'}"),
        (
            {'model.backbone.networks.bottom.strides': [1, 2]},
            'model.backbone.networks.bottom',
        ),
        ({'optim_wrapper.optimizer.momentum': -0.0, 'optim_wrapper.optimizer.nesterov': True},
         'optim_wrapper.optimizer.momentum=-0.0, optim_wrapper.optimizer.nesterov=True (SGD)'),
        ({'param_scheduler.0.begin': 9}, 'param_scheduler.0.begin=9, param_scheduler.0.end=1'),
    ],
)  # fmt: skip
def test_what_a_constructor_says_gets_the_path(option, message, data_root, tmp_path):
    cfg = Config(base('cross_coop', data_root))
    cfg.param_scheduler[0].end = 1
    cfg.merge_from_dict(option)
    cfg.work_dir = str(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)), config_errors(cfg):
        build_runner(cfg).train()


def test_the_tool_ends_with_one_line(data_root, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, ROOT / 'tools/train.py', ROOT / 'configs' / CONFIGS['cross_coop']),
            *('--work-dir', tmp_path, '--no-validate', '--cfg-options'),
            *(f'train_dataloader.dataset.data_root={data_root}', 'train_dataloader.batch_size=2'),
            *('param_scheduler.0.begin=9', 'param_scheduler.0.end=1'),
        ],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith('error: param_scheduler.0.begin=9')


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (
            {'model.decode_head.networks.top.in_channels': 100},
            "the decode head of network 'top' was built for 100 channels at level -1",
        ),
        (
            {'model.decode_head.networks.bottom.low_level_index': 7},
            "the decode head of network 'bottom' takes level 7 of the feature pyramid",
        ),
        (
            {'train_dataloader.batch_size': 1},
            'the image pooling branch of ASPP cannot be trained with a batch of 1',
        ),
    ],
)
def test_what_does_not_fit_the_model_is_one_line(option, message, data_root, tmp_path, monkeypatch):
    file = tmp_path / 'config.py'
    cfg = Config(base('cross_coop', data_root))
    cfg.merge_from_dict(option)
    cfg.dump(file)
    monkeypatch.setattr(sys, 'argv', ['train.py', str(file), '--work-dir', str(tmp_path / 'work')])
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
    assert str(end.value.code).startswith(f'error: {message}')


def test_channels_that_a_plain_head_does_not_expect_are_one_line():
    backbone = dict(type='MobileNetV2', widen_factor=0.25, out_indices=(1, 6))
    head = dict(type='FCNHead', in_channels=64, channels=8, num_classes=3)
    model = MODELS.build(dict(type='EncoderDecoder', backbone=backbone, decode_head=head))
    message = r'^model.decode_head.convs.0.conv was built for 64 channels, but gets 80; change in_'
    with pytest.raises(ConfigError, match=message), config_errors({}):
        model(torch.rand(2, 3, 64, 64))
    with pytest.raises(RuntimeError, match='must match'), config_errors({}):
        model(torch.rand(2, 3, 64, 64) + torch.rand(5, 1))  # an error of another kind


TOP_LEVEL_SLIPS = dict(
    train_dataloder=('train_dataloader', dict(batch_size=4)),
    train_data_loader=('train_dataloader', dict(batch_size=4)),
    optim_wraper=('optim_wrapper', dict(optimizer=dict(lr=0.01))),
    randomess=('randomness', dict(seed=1)),
    loadfrom=('load_from', 'model.pth'),
    default_hook=('default_hooks', dict(logger=dict(type='LoggerHook'))),
    custom_hook=('custom_hooks', [dict(type='EMAHook')]),
    custom_import=('custom_imports', dict(imports=['my_project'])),
    tta_pipelin=('tta_pipeline', []),
)


@pytest.mark.parametrize('slip', TOP_LEVEL_SLIPS)
def test_a_slip_at_the_top_is_named_with_what_is_meant(slip):
    meant, value = TOP_LEVEL_SLIPS[slip]
    with pytest.raises(ConfigError, match=f'^{slip} is read by nothing; did you mean {meant}\\?'):
        load_config(str(ROOT / 'configs' / CONFIGS['cross_coop']), cfg_options={slip: value})


def test_variables_of_the_user_stay(tmp_path):
    file = tmp_path / 'config.py'
    file.write_text(
        f"""
_base_ = '{ROOT / 'configs' / CONFIGS['cross_coop']}'
my_own = 1
train_dataset = dict(type='CamVidDataset')
val_pipeline = []
train_dataloader_small = dict(batch_size=2)
optimizer = dict(type='SGD', lr=0.1)
model2 = dict(decode_head=dict(channels=8))
visualizers = dict(name='visualizer')
visualizer = dict(**visualizers)
models = []
"""
    )
    cfg = load_config(str(file))
    assert cfg.visualizers == dict(name='visualizer')
    again = tmp_path / 'again.py'
    cfg.pop('visualizers')  # written down again, what a config has read looks like a slip
    cfg.dump(again)
    load_config(str(again))


def test_no_false_alarm_on_our_configs():
    for path in sorted(ROOT.glob('configs/[!_]*/*.py')):
        check_classes(load_config(str(path)))


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        (
            'model.decode_head.num_classes',
            'model.decode_head.num_classes is 19, but the number of classes of '
            'train_dataloader.dataset (CamVidDataset) is 11',
        ),
        (
            'val_dataloader.dataset.pipeline.1.num_classes',
            'model.decode_head.num_classes is 11, but val_dataloader.dataset.pipeline.1.num_classes'
            ' is 19',
        ),
    ],
)
def test_classes_that_do_not_fit_are_named_before_data_are_read(key, message):
    # Tools that need no data take any number.
    cfg = load_config(str(ROOT / 'configs' / CONFIGS['cross_coop']), cfg_options={key: 19})
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_data(cfg)


def test_classes_in_a_file_are_not_counted():
    path = str(ROOT / 'configs' / CONFIGS['cross_coop'])
    key = 'train_dataloader.dataset.metainfo'
    cfg = load_config(path, cfg_options={key: dict(classes='names.txt')})
    check_classes(cfg)


def zoo():
    """Configs of mmseg's model zoo by folder."""
    folder = Path(mmseg.__file__).parent / '.mim/configs'
    return {
        method.name: files
        for method in sorted(folder.glob('[!_]*'))
        if (files := sorted(method.glob('*.py')))
    }


def check_silence(files):
    silent = 0
    for file in files:
        try:
            cfg = Config.fromfile(file)
        except ImportError:  # needs a package of its own
            continue
        check_config(cfg)
        settle_ignore_index(cfg)
        check_classes(cfg)
        silent += 1
    return silent


def test_no_false_alarm_on_one_config_of_every_method_of_mmseg():
    files = [files[len(files) // 2] for files in zoo().values()]
    assert check_silence(files) > 40


@pytest.mark.slow
def test_no_false_alarm_on_any_config_of_mmseg():
    assert check_silence([file for files in zoo().values() for file in files]) > 600
