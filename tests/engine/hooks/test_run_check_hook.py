"""Parts of a run that are right alone, but do not agree."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS, MODELS

from mmseg_coop.apis import build_runner
from mmseg_coop.config import config_errors
from mmseg_coop.errors import CheckpointError, ConfigError

ENDLESS, FINITE = (dict(type=f'{name}Sampler', shuffle=False) for name in ('Infinite', 'Default'))
EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=1)


@pytest.fixture
def cfg(coop_model_cfg, tmp_path):
    """Config of a training of one iteration and one evaluation on two drawn images."""
    for folder in ('img_dir', 'ann_dir'):
        (tmp_path / 'data' / folder).mkdir(parents=True)
        for index in range(2):
            image = np.full((64, 64), index, np.uint8)
            cv2.imwrite(str(tmp_path / 'data' / folder / f'{index}.png'), image)
    loads = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    loader = dict(
        batch_size=2,
        sampler=FINITE,
        dataset=dict(
            type='BaseSegDataset',
            metainfo=dict(classes=('a', 'b', 'c', 'd')),
            img_suffix='.png',
            data_root=str(tmp_path / 'data'),
            data_prefix=dict(img_path='img_dir', seg_map_path='ann_dir'),
            pipeline=[*loads, dict(type='PackSegInputs')],
        ),
    )
    return Config(
        dict(
            launcher='none',
            work_dir=str(tmp_path / 'run'),
            experiment_name=tmp_path.name,
            default_scope='mmseg',
            model=coop_model_cfg(),
            train_dataloader=dict(loader, sampler=ENDLESS),
            val_dataloader=dict(loader, batch_size=1),
            test_dataloader=dict(loader, batch_size=1),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=1, val_interval=1),
            val_cfg=dict(type='ValLoop'),
            test_cfg=dict(type='TestLoop'),
            val_evaluator=dict(type='CoopIoUMetric'),
            test_evaluator=dict(type='CoopIoUMetric'),
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.01),
                paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
            ),
            param_scheduler=[dict(type='PolyLR', begin=0, end=1, by_epoch=False)],
            default_hooks=dict(
                checkpoint=dict(type='AtomicCheckpointHook', interval=-1, by_epoch=False)
            ),
        )
    )


def train(cfg):
    """Train as the tool does; return the warnings in the log."""
    with config_errors(cfg):
        build_runner(cfg).train()
    (log,) = Path(cfg.work_dir).glob('*/*.log')
    return [line for line in log.read_text().splitlines() if 'WARNING' in line]


def warned(cfg, text):
    return [line for line in train(cfg) if text in line]


def refused(cfg, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        train(cfg)
    assert '\n' not in str(caught.value)
    assert not list(Path(cfg.work_dir).glob('*.pth'))


@pytest.mark.parametrize(
    ('options', 'save_best', 'message'),
    [
        ({}, 'tpo/mIoU', "save_best='tpo/mIoU' of AtomicCheckpointHook is no metric of the "
         "evaluation (did you mean 'top/mIoU'?); choose among aAcc, mIoU, mAcc, top/aAcc, "),
        ({}, ['mIoU', 'mDice'], "save_best='mDice'"),
        (dict(iou_metrics=['mFscore']), 'mIoU', 'choose among aAcc, mFscore, mPrecision, mRecall,'),
        (dict(prefix='val'), 'mIoU', "(did you mean 'val/mIoU'?)"),
        (dict(type='IoUMetric'), 'top/mIoU', 'choose among aAcc, mIoU, mAcc.'),
    ],
)  # fmt: skip
def test_save_best_that_is_no_metric_is_refused_before_the_training(
    cfg, options, save_best, message
):
    cfg.val_evaluator.update(options)
    cfg.default_hooks.checkpoint.save_best = save_best
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = 10**9  # no evaluation in this life
    refused(cfg, message)


@pytest.mark.parametrize('hook', ['AtomicCheckpointHook', 'CheckpointHook'])
def test_save_best_of_a_foreign_metric_is_refused_with_the_first_evaluation(cfg, hook):
    cfg.val_evaluator = dict(type='PixelCount')
    cfg.default_hooks.checkpoint.update(type=hook, save_best='mIoU', save_last=False)
    refused(cfg, f"save_best='mIoU' of {hook} is no metric of the evaluation; choose among pixels.")


@METRICS.register_module()
class PixelCount(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [sample['pred_sem_seg']['data'].numel() for sample in data_samples]

    def compute_metrics(self, results):
        return dict(pixels=sum(results))


@pytest.mark.parametrize(
    ('options', 'save_best'),
    [
        ({}, 'auto'),
        ({}, ['mIoU', 'ensemble/mAcc']),
        (dict(prefix='val', iou_metrics=['mDice', 'mFscore']), 'val/bottom/mPrecision'),
        (dict(type='IoUMetric', prefix='val'), 'val/mAcc'),
        (dict(type='PixelCount'), 'pixels'),
    ],
)
def test_save_best_that_is_a_metric_is_saved(cfg, options, save_best):
    cfg.val_evaluator.update(options)
    cfg.default_hooks.checkpoint.update(save_best=save_best, rule='greater')
    train(cfg)
    names = (
        {'auto': ['aAcc']}.get(save_best, save_best) if isinstance(save_best, str) else save_best
    )
    names = [names] if isinstance(names, str) else names
    for name in names:
        assert list(Path(cfg.work_dir).glob(f'best_{name.replace("/", "_")}_*.pth'))


@pytest.mark.parametrize(
    ('split', 'loop'), [('train', 'EpochBasedTrainLoop'), ('val', 'ValLoop'), ('test', 'TestLoop')]
)
def test_a_loop_to_the_end_of_an_endless_sampler_is_refused(cfg, split, loop):
    cfg.train_cfg = EPOCHS
    cfg.train_dataloader.sampler = FINITE
    cfg.param_scheduler = None
    cfg[f'{split}_dataloader'].sampler = ENDLESS
    with pytest.raises(ConfigError, match=f'{split}_dataloader.sampler is Inf.* but {loop} goes'):
        getattr(build_runner(cfg), 'test' if split == 'test' else 'train')()


def test_an_epoch_over_a_finite_sampler_runs(cfg):
    cfg.train_cfg = EPOCHS
    cfg.train_dataloader.sampler = FINITE
    cfg.param_scheduler = [dict(type='PolyLR', end=1)]
    assert not warned(cfg, 'param_scheduler')


@pytest.mark.parametrize(
    ('schedulers', 'train_cfg', 'expected'),
    [
        ([dict(type='PolyLR', end=1, by_epoch=False)], dict(max_iters=2),
         'param_scheduler ends at 1, the training at 2 (iterations)'),
        ([dict(type='LinearLR', end=1, by_epoch=False),
          dict(type='PolyLR', begin=1, end=3, by_epoch=False)], dict(max_iters=4),
         'param_scheduler ends at 3, the training at 4 (iterations)'),
        ([dict(type='PolyLR', end=1)], dict(EPOCHS, max_epochs=2), 'at 1, the training at 2 (epo'),
        ([dict(type='PolyLR', end=1, convert_to_iter_based=True)], dict(EPOCHS, max_epochs=2),
         'at 1, the training at 2 (iterations)'),
        ([dict(type='PolyLR', end=2)], dict(max_iters=2),
         'PolyLR with by_epoch=True, but IterBasedTrainLoop counts iterations'),
        ([dict(type='PolyLR', end=9, by_epoch=False)], dict(max_iters=2), None),
        ([dict(type='MultiStepLR', milestones=[1], by_epoch=False)], dict(max_iters=2), None),
        ([dict(type='ConstantMomentum', end=1, by_epoch=False),
          dict(type='PolyLR', end=2, by_epoch=False)], dict(max_iters=2), None),
        ([], dict(max_iters=2), None),
    ],
)  # fmt: skip
def test_a_schedule_that_ends_before_the_training_is_a_warning(
    cfg, schedulers, train_cfg, expected
):
    cfg.param_scheduler = schedulers
    cfg.train_cfg.update(train_cfg)
    if 'max_epochs' in train_cfg:
        cfg.train_cfg.pop('max_iters')
        cfg.train_dataloader.sampler = FINITE
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    found = warned(cfg, 'param_scheduler')
    assert len(found) == (expected is not None)
    assert not expected or expected in found[0]


@pytest.mark.parametrize(
    ('keys', 'expected'),
    [
        (['backbone', 'decode_head.networks'], None),
        (['bakcbone', 'absolute_pos_embed'],
         "effect: 'bakcbone' (did you mean 'backbone'?), 'absolute_pos_embed'."),
        (['decode_head.network'], None),  # part of a name, as mmengine reads it
        (['decode_heda.networks'], "(did you mean 'decode_head.networks'?)"),
    ],
)  # fmt: skip
def test_custom_keys_without_a_parameter_are_a_warning(cfg, keys, expected):
    cfg.optim_wrapper.paramwise_cfg.custom_keys = {key: dict(lr_mult=0.1) for key in keys}
    found = warned(cfg, 'custom_keys')
    assert len(found) == (expected is not None)
    assert not expected or expected in found[0]


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('default_hooks.checkpoint', 'interval of AtomicCheckpointHook is 0; give a number from 1'),
        ('default_hooks.visualization', 'interval of SegVisualizationHook is 0'),
        ('default_hooks.logger', 'default_hooks.logger.interval=0 (LoggerHook): '),
    ],
)
def test_an_interval_of_nothing_is_refused(cfg, key, message):
    cfg.default_hooks.update(
        logger=dict(type='LoggerHook'),
        visualization=dict(type='SegVisualizationHook', draw=True),
    )
    cfg.visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
    cfg.merge_from_dict({f'{key}.interval': 0})
    refused(cfg, message)


def test_images_of_several_sizes_are_refused_by_a_model_that_takes_one(cfg):
    for folder in ('img_dir', 'ann_dir'):
        image = np.zeros((48, 64), np.uint8)
        cv2.imwrite(str(Path(cfg.train_dataloader.dataset.data_root, folder, '0.png')), image)
    cfg.model = dict(
        type='EncoderDecoder',
        data_preprocessor=cfg.model.data_preprocessor,
        backbone=cfg.model.backbone.networks.top,
        decode_head=dict(type='FCNHead', in_channels=64, channels=8, num_classes=4, num_convs=1),
        test_cfg=dict(mode='whole'),
    )
    cfg.val_dataloader.batch_size = 2
    cfg.train_cfg = cfg.train_dataloader = cfg.optim_wrapper = cfg.param_scheduler = None
    with config_errors(cfg), pytest.raises(ConfigError, match=r'48x64 and 64x64.*batch_size=1'):
        build_runner(cfg).val()
    cfg.val_dataloader.batch_size = 1
    cfg.experiment_name += '_1'
    build_runner(cfg).val()


@pytest.fixture
def weights(cfg):
    """Weights that fit the model of the config."""
    return MODELS.build(cfg.model).state_dict()


def load(cfg, weights, tmp_path, *, wrapped=True):
    cfg.load_from = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict=weights, meta={}) if wrapped else weights, cfg.load_from)


@pytest.mark.parametrize('wrapped', [True, False])
def test_weights_that_fit_are_taken_without_a_word(cfg, weights, tmp_path, wrapped):
    weights = {f'module.{name}': value for name, value in weights.items()}
    load(cfg, weights, tmp_path, wrapped=wrapped)
    assert not warned(cfg, 'weights.pth')


def test_weights_that_fit_in_part_are_counted_and_named(cfg, weights, tmp_path):
    count, name = len(weights), 'decode_head.networks.top.conv_seg.weight'
    weights[name] = weights[name][:1]
    del weights['decode_head.networks.top.conv_seg.bias']
    weights['head.fc.weight'] = torch.ones(1)
    load(cfg, weights, tmp_path)
    lacking, unused = warned(cfg, 'weights.pth')
    assert (
        f'of {count} tensors 2 are missing or of another shape ({name}, '
        'decode_head.networks.top.conv_seg.bias); they start as they were initialised.' in lacking
    )
    assert 'CrossCoopEncoderDecoder does not have, which is left out: head.fc.weight.' in unused
    # What is tested has to have been trained.
    for key in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler'):
        cfg.pop(key)
    with pytest.raises(CheckpointError, match=r'2 are missing or of another shape .* use the conf'):
        build_runner(cfg).test()


def test_frozen_networks_without_weights_are_refused(cfg, weights, tmp_path):
    cfg.model.frozen = ['top']
    refused(
        cfg, "model.frozen=['top'] is not trained, and nothing gives its weights; set load_from"
    )
    load(cfg, {name: weights[name] for name in weights if '.top.' not in name}, tmp_path)
    with pytest.raises(CheckpointError, match=r"frozen=\['top'\] is not trained; give load_from"):
        train(cfg)


def test_frozen_networks_with_weights_are_taken(cfg, weights, tmp_path):
    cfg.model.frozen = ['top']
    load(cfg, {name: weights[name] for name in weights if '.bottom.' not in name}, tmp_path)
    (warning,) = warned(cfg, 'weights.pth')
    assert 'they start as they were initialised' in warning


def test_weights_of_another_model_do_not_start_a_training(cfg, tmp_path):
    load(cfg, dict(weight=torch.ones(3)), tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit .* init_cfg=dict\(type='Pretrained'"):
        train(cfg)
