"""Every key of a config is misspelt and gets values of wrong sorts: an error has to name it."""

from __future__ import annotations

import copy
import functools
import itertools
import re
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
from mmseg_coop.errors import ConfigError, CoopError, InputError
from tests.conftest import ROOT

CONFIGS = dict(
    cross_coop='cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py',
    dpanet='dpanet/dpanet_mnv2-d8_1xb6-600_camvid-180x240.py',
)
PARTS = (
    *('model', 'tta_model', 'train_dataloader', 'val_dataloader', 'val_evaluator', 'visualizer'),
    *('train_cfg', 'optim_wrapper', 'param_scheduler', 'default_hooks', 'custom_hooks'),
)
#: What each value is replaced by.
WRONG = ('wrong', None, [], {}, ['wrong'], dict(a=1), -1, 0, -2.5, 7)


@pytest.fixture(scope='module')
def data_root(mini_data):
    return mini_data(train=2, val=1)


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


def changes(cfg):
    """Every change to make: the path to where, and the wrong value or None for a misspelt key."""
    for part in PARTS:
        for path in leaves(cfg[part], (part,)):
            old = at(cfg, path)
            if path[1:] and isinstance(path[-1], str):
                yield path, ()
            for wrong in WRONG:
                if wrong != old or type(wrong) is not type(old):
                    yield path, (wrong,)


def mutate(cfg, path, wrong):
    """Make a change: what was done, the path to where, and the config."""
    *parent, key = path
    mutated = copy.deepcopy(cfg)
    place = at(mutated, parent)
    if wrong:
        place[key] = copy.deepcopy(wrong[0])
        return repr(wrong[0]), path, mutated
    place[key + 'x'] = place.pop(key)
    return 'misspelt', (*parent, key + 'x'), mutated


def is_named(path, message):
    """Whether a message names a key, or with its dotted path a part that it belongs to."""
    key = next(key for key in reversed(path) if isinstance(key, str))
    parts = ['.'.join(map(str, path[:end])) for end in range(min(2, len(path) - 1), len(path))]
    network = path[path.index('networks') + 1] if 'networks' in path[:-1] else None
    return (
        key.removesuffix('x') in message
        or any(part and part in message for part in parts)
        or (network is not None and f'network {network!r}' in message)
    )


#: One of so many mutations is tried, where not all are.
EVERY = 10


@functools.cache
def left_over(name, data_root, every):
    """Changes that nothing is said about before building, and how many were tried."""
    cfg, left, count = base(name, data_root), [], 0
    for change in itertools.islice(changes(cfg), 0, None, every):
        count += 1
        what, path, mutated = mutate(cfg, *change)
        message = slip(mutated)
        assert message is None or is_named(path, message), (what, path, message)
        left += [] if message else [change]
    return left, count


def slip(cfg):
    """What is said of a config when it is read."""
    try:
        check_config(cfg)
        settle_ignore_index(cfg)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize('name', CONFIGS)
def test_every_second_mutation_is_refused_by_name_before_anything_is_built(name, data_root):
    left, count = left_over(name, data_root, EVERY)
    assert count > 150
    assert len(left) < count / 2


def run(cfg):
    """Train as the tool does."""
    check_data(cfg, splits=('train', 'val'))
    runner = build_runner(cfg)
    with config_errors(cfg):
        runner.train()


def outcome(cfg, work_dir):
    """What becomes of a training: the error that the tool shows in one line, or None if it runs."""
    try:
        run(Config(dict(cfg, work_dir=str(work_dir))))
    except (CoopError, FileNotFoundError) as error:
        return error
    return None


def check_outcomes(name, data_root, tmp_path, monkeypatch, *, every, of):
    # Writing the config into the log takes a good part of such a run.
    monkeypatch.setattr(Config, 'pretty_text', property(lambda cfg: ''))
    ran, wrong, unchanged = 0, [], base(name, data_root)
    left = left_over(name, data_root, every)[0][::of]
    for index, change in enumerate(left):
        what, path, cfg = mutate(unchanged, *change)
        cfg['experiment_name'] = f'{what}-{index}'
        try:
            error = outcome(cfg, tmp_path)
        except Exception as error:
            if str(path[-1]) in str(error):  # mmengine's own words
                continue
            wrong.append((what, path, f'{type(error).__name__}: {error}'))
            continue
        ran += error is None
        # what a head says of the maps that it gets, it says with the names of the networks
        named = error is None or isinstance(error, InputError) or is_named(path, str(error))
        wrong += [] if named else [(what, path, error)]
    assert not wrong, '\n'.join(map(str, wrong))
    return ran, len(left)


@pytest.mark.parametrize('name', CONFIGS)
def test_what_is_not_refused_runs_or_is_refused_by_name(name, data_root, tmp_path, monkeypatch):
    ran, tried = check_outcomes(name, data_root, tmp_path, monkeypatch, every=EVERY, of=12)
    assert 0 < ran <= tried


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_of_all_an_eighth_of_what_is_not_refused_runs_or_is_refused_by_name(
    name, data_root, tmp_path, monkeypatch
):
    """Every mutation is checked; of those that pass, every eighth is trained: some 100 a config."""
    ran, tried = check_outcomes(name, data_root, tmp_path, monkeypatch, every=1, of=8)
    assert ran > tried / 8


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
        (
            {'default_hooks.checkpoint.intervalz': 5},
            'default_hooks.checkpoint.intervalz is unknown',
        ),
        (
            {'model.decode_head.type': 'CoopHead'},
            'model.decode_head.networks.top: CoopHead needs to know the head; give a type',
        ),
        (
            {'model.decode_head.networks.top.type': 'SegformerHed'},
            "networks.top.type is 'SegformerHed', which is not registered; did you mean SegformerH",
        ),
        (
            {'train_dataloader.dataset.data_prefix': dict(img_pth='a', seg_map_path='b')},
            'train_dataloader.dataset.data_prefix.img_pth is unknown; did you mean img_path?',
        ),
        (
            {'train_dataloader.dataset.pipeline': [dict(type='RandomResize')]},
            'train_dataloader.dataset.pipeline.0 has no scale, which RandomResize needs',
        ),
        (
            {'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop')},
            'train_cfg has no max_iters, which Iter',
        ),
        (
            {'model.decode_head.networks.top': dict(_delete_=True, type='FPNHead')},
            'model.decode_head.networks.top has no feature_strides, which FPNHead needs',
        ),
        (
            {'train_dataloader.dataset.pipeline': [dict(type='LoadImageFromFile'), 3]},
            'train_dataloader.dataset.pipeline.1 is 3 (int), but CamVidDataset takes pipeline: Lis',
        ),
        ({'train_cfg': []}, 'train_cfg is [] (list), but the runner takes train_cfg: '),
        (
            {'optim_wrapper.optimizer.lr': None},
            'optim_wrapper.optimizer.lr is None (NoneType',
        ),
        ({'visualizer': dict(_delete_=True)}, 'visualizer is {} (dict); give it a type'),
        ({'randomness.sed': 1}, 'randomness.sed'),
        (
            {'model.decode_head.transfer': [dict(teacher='top', studnt='bottom')]},
            'model.decode_head.transfer.0.studnt is unknown for Transfer; did you mean student?',
        ),
        (
            {'model.decode_head.transfer': [dict(student='top')]},
            'model.decode_head.transfer.0 has no teacher, which Transfer needs.',
        ),
        (
            {'model.decode_head.transfer': dict(teacher='top', student='bottom')},
            "transfer is {'teacher': 'top', 'student': 'bottom'} (ConfigDict), but CrossCoop",
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
        (
{'model.test_cfg.output': 'left'},
"model.test_cfg={'mode': 'whole', 'output': 'left'} (CrossCoopEncoderDecoder): test_cfg.outp",
),
        (
            {'model.decode_head.transfer': [dict(teacher='ensmble', student='top')]},
            "transfer.0: teacher='ensmble' is unknown; choose one of ('top', 'bottom', 'ensemble')",
        ),
        ({'model.test_cfg.outputs': 'top'}, 'test_cfg.outputs is unknown; did you mean output?'),
        ({'model.test_cfg.mode': 'slied'}, "test_cfg.mode='slied' is unknown; choose one of"),
        ({'model.test_cfg': dict(mode='slide')}, 'test_cfg.crop_size=None holds no numbers'),
        (
            {'model.test_cfg': dict(mode='slide', crop_size=(32, 64), stride=(32, 65))},
            'test_cfg.stride=(32, 65) is more than crop_size=(32, 64)',
        ),
        ({'model.data_preprocessor.std': [1, 0, 1]}, 'std is [1, 0, 1]; it divides'),
        (
            {'model.decode_head.networks.top.dilations': (1, 2)},
            'model.decode_head.networks={',  # not its topology, which has such names as well
        ),
        (
            {
                f'{split}_dataloader.dataset.pipeline': [
                    dict(type='LoadSegImage'),
                    dict(type='LoadSecondImage', folder=(split, 'b'), dtype='int'),
                ]
                for split in ('train', 'val')
            },
            "train_dataloader.dataset.pipeline.1.dtype='int' (LoadSecondImage): dtype is 'int'; ",
        ),
        (
            {'train_dataloader.batch_size': -2},
            'train_dataloader.batch_size=-2: batch_size should be a positive integer value, but',
        ),
        (
            {'train_dataloader.persistent_workers': True},
            'train_dataloader.persistent_workers=True: persistent_workers option needs num_workers',
        ),
        ({'val_dataloader.sampler': []}, 'val_evaluator (CoopIoUMetric): no image was evaluated; '),
        ({'train_cfg.val_interval': 0}, 'train_cfg.val_interval is 0; give a number from 1 on'),
        ({'train_cfg.max_iters': -1}, 'train_cfg.max_iters is -1; give a number from 1 on'),
        (
            {'optim_wrapper.optimizer.lr': -0.1},
            'optim_wrapper.optimizer.lr=-0.1 (SGD): Invalid learning rate: -0.1',
        ),
        (
            {'optim_wrapper.paramwise_cfg': dict(custom_keys=dict(decode_head=dict(lr_mult=-1)))},
            'optim_wrapper.paramwise_cfg give a lr of -0.1',
        ),
        (
            {'train_dataloader.dataset.pipeline.2.ratio_range': (-2, -1)},
            'train_dataloader.dataset.pipeline.2 (RandomResize): error: OpenCV',
        ),
        (
            {'train_dataloader.dataset.pipeline.5': dict(type='RandomFlip', prob=0.5)},
            'train_dataloader.dataset.pipeline packs no image; end it with PackSegInputs',
        ),
        (
            {'model.backbone.networks.bottom.strides': [1, 2]},
            'model.backbone.networks.bottom',
        ),
        ({'optim_wrapper.optimizer.momentum': -0.0, 'optim_wrapper.optimizer.nesterov': True},
         'optim_wrapper.optimizer.momentum=-0.0, optim_wrapper.optimizer.nesterov=True (SGD)'),
        ({'param_scheduler.0.begin': 9}, 'param_scheduler.0.begin=9, param_scheduler.0.end=1'),
        (
            {'model.decode_head.loss_decode': 'ce'},  # not of another argument, such as dilations
            "model.decode_head.loss_decode='ce' (CrossCoopASPPHead): TypeError: loss_decode must",
        ),
    ],
)  # fmt: skip
def test_what_a_constructor_says_gets_the_path(option, message, data_root, tmp_path):
    cfg = Config(base('cross_coop', data_root))
    cfg.param_scheduler[0].end = 1
    cfg.merge_from_dict(option)
    cfg.work_dir = str(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(cfg)


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
        ({'param_scheduler.0.begin': 999}, 'param_scheduler.0.begin=999'),
    ],
)
def test_the_tool_ends_with_one_line(option, message, data_root, tmp_path, tool):
    cfg = Config(base('cross_coop', data_root))
    cfg.merge_from_dict(option)
    cfg.dump(tmp_path / 'config.py')
    done = tool('tools/train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'work')
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f'error: {message}')
    assert 'Traceback' not in done.stderr


def test_channels_that_a_plain_head_does_not_expect_are_one_line():
    backbone = dict(type='MobileNetV2', widen_factor=0.25, out_indices=(1, 6))
    head = dict(type='FCNHead', in_channels=64, channels=8, num_classes=3)
    cfg = dict(model=dict(type='EncoderDecoder', backbone=backbone, decode_head=head))
    model = MODELS.build(cfg['model'])
    message = r'^model.decode_head.in_channels=64.* \(FCNHead\): .* to have 64 channels, but got 80'
    with pytest.raises(ConfigError, match=message), config_errors(cfg):
        model(torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize(
    'error',
    [
        torch.cuda.OutOfMemoryError('no room'),
        RuntimeError('CUDA error: device-side assert triggered'),
        FileNotFoundError('no weights'),
    ],
)
def test_what_no_config_is_to_blame_for_passes(error):
    class Head(torch.nn.Module):
        def forward(self):
            raise error

    with pytest.raises(type(error), match=str(error)), config_errors(dict(model=dict(type=Head))):
        Head()()


def test_an_error_of_ours_is_not_the_config_s():
    def fails():
        raise KeyError('a bug')

    with pytest.raises(KeyError), config_errors(base('cross_coop', '')):
        fails()


def test_what_a_worker_of_a_loader_raises_keeps_its_traceback():
    cfg = dict(train_dataloader=dict(dataset=dict(type=Broken), num_workers=1))
    loader = torch.utils.data.DataLoader(Broken(), num_workers=1)
    with pytest.raises(KeyError, match='Original Traceback'), config_errors(cfg):
        next(iter(loader))


class Broken:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise KeyError('broken')


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
