from __future__ import annotations

import copy
import re

import numpy as np
import pytest
from mmengine.config import Config
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from mmseg_coop.config import load_config
from mmseg_coop.config.ignore_index import settle_ignore_index
from mmseg_coop.datasets import check_loading
from mmseg_coop.errors import ConfigError


@pytest.fixture
def cfg(coop_model_cfg, tmp_path):
    """Config of a model and its data, in which no label to ignore is given."""
    for folder, image in (('images', np.zeros((32, 32, 3))), ('labels', np.full((32, 32), 254))):
        (tmp_path / folder).mkdir()
        suffix = 'jpg' if folder == 'images' else 'png'
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / folder / f'a.{suffix}')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomChoice', transforms=[[dict(type='Pad', size=(48, 48))]]),
        dict(type='RandomRotate', prob=1.0, degree=30),
        dict(type='RandomCrop', crop_size=(48, 48), cat_max_ratio=0.9),
        dict(type='PackSegInputs'),
    ]
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=tuple('abcd')),
        pipeline=pipeline,
    )
    model = coop_model_cfg(
        loss_decode=[
            dict(type='CrossEntropyLoss', avg_non_ignore=True),
            dict(type='TverskyLoss', loss_weight=0.5),
        ]
    )
    model['data_preprocessor']['seg_pad_val'] = 255  # as mmseg's own configs write it down
    return Config(
        dict(
            default_scope='mmseg',
            model=model,
            train_dataloader=dict(dataset=dataset),
            val_dataloader=dict(dataset=copy.deepcopy(dataset)),
            val_evaluator=[dict(type='CoopIoUMetric')],
        )
    )


def everywhere(cfg):
    """Every label to be ignored that a config gives."""
    steps = cfg.train_dataloader.dataset.pipeline
    return dict(
        head=cfg.model.decode_head.get('ignore_index'),
        loss=cfg.model.decode_head.loss_decode[1].get('ignore_index'),
        batch=cfg.model.data_preprocessor.get('seg_pad_val'),
        dataset=cfg.train_dataloader.dataset.get('ignore_index'),
        pad=steps[2].transforms[0][0].get('pad_val', {}).get('seg'),
        rotate=steps[3].get('seg_pad_val'),
        crop=steps[4].get('ignore_index'),
        val=cfg.val_dataloader.dataset.get('ignore_index'),
        metric=cfg.val_evaluator[0].get('ignore_index'),
    )


@pytest.mark.parametrize(
    'key',
    [
        'model.decode_head.ignore_index',
        'model.decode_head.networks.bottom.ignore_index',
        'train_dataloader.dataset.ignore_index',
        'val_dataloader.dataset.ignore_index',
    ],
)
def test_a_label_that_is_given_once_goes_everywhere(cfg, key):
    cfg.merge_from_dict({key: 254})
    settle_ignore_index(cfg)
    assert set(everywhere(cfg).values()) == {254}


def test_nothing_is_changed_where_nothing_is_given(cfg):
    before = cfg._cfg_dict.to_dict()
    settle_ignore_index(cfg)
    assert cfg._cfg_dict.to_dict() == before


def test_pixels_of_the_given_label_are_ignored_from_the_file_to_the_loss(cfg):
    cfg.model.decode_head.ignore_index = 254
    settle_ignore_index(cfg)
    check_loading(cfg.train_dataloader.dataset)
    sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
    assert sample['data_samples'].gt_sem_seg.data.unique().tolist() == [254]
    model = MODELS.build(cfg.model).train()
    batch = dict(inputs=[sample['inputs']] * 2, data_samples=[sample['data_samples']] * 2)
    batch = model.data_preprocessor(batch, training=True)  # pads to 64 x 64
    assert batch['data_samples'][0].gt_sem_seg.data.unique().tolist() == [254]
    losses = model(**batch, mode='loss')
    assert losses['decode.top.loss_ce'] == 0  # with 255 it raises an IndexError


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        (
            {
                'model.decode_head.ignore_index': 254,
                'val_evaluator': [dict(type='IoUMetric', ignore_index=255)],
            },
            ['val_evaluator.0.ignore_index is 255', 'model.decode_head.ignore_index is 254'],
        ),
        (
            {
                'model.decode_head.ignore_index': 254,
                'model.decode_head.networks.top.ignore_index': 0,
            },
            [
                'model.decode_head.ignore_index is 254',
                'model.decode_head.networks.top.ignore_index is 0',
            ],
        ),
        (
            {
                'model.decode_head.ignore_index': 0,
                'train_dataloader.dataset.pipeline.1': dict(
                    type='LoadSegAnnotations', ignore_index=255
                ),
            },
            [
                'train_dataloader.dataset.pipeline.1.ignore_index is 255',
                'model.decode_head.ignore_index is 0',
            ],
        ),
        (
            {'model.data_preprocessor.seg_pad_val': 0},
            ['model.data_preprocessor.seg_pad_val is 0', 'the default of all others is 255'],
        ),
        (
            {
                'train_dataloader.dataset.pipeline.2.transforms.0.0.pad_val': dict(img=0, seg=1),
            },
            [
                'train_dataloader.dataset.pipeline.2.transforms.0.0.pad_val.seg is 1',
                'the default of all others is 255',
            ],
        ),
        (
            {'model.decode_head.loss_decode.1.ignore_index': 200},
            [],  # it is a source like the head, so all others follow
        ),
    ],
)  # fmt: skip
def test_labels_that_contradict_each_other_are_named_with_their_places(cfg, options, named):
    cfg.merge_from_dict(options)
    if not named:
        settle_ignore_index(cfg)
        assert set(everywhere(cfg).values()) == {200}
        return
    with pytest.raises(ConfigError, match='the label that is ignored differs') as error:
        settle_ignore_index(cfg)
    assert all(place in str(error.value) for place in named), error.value


def test_a_class_that_a_loss_leaves_out_is_not_the_label_that_is_ignored(cfg):
    cfg.model.decode_head.loss_decode[1].ignore_index = 0
    settle_ignore_index(cfg)
    assert cfg.model.decode_head.get('ignore_index') is None
    cfg.model.decode_head.ignore_index = 254
    settle_ignore_index(cfg)
    assert cfg.model.decode_head.loss_decode[1].ignore_index == 0


def test_padding_of_another_value_keeps_its_value_for_images(cfg):
    pad = cfg.train_dataloader.dataset.pipeline[2].transforms[0][0]
    pad.pad_val = 7
    cfg.model.decode_head.ignore_index = 254
    settle_ignore_index(cfg)
    assert pad.pad_val == dict(img=7, seg=254)


def test_reading_a_config_settles_it(cfg, tmp_path):
    cfg.model.decode_head.ignore_index = 254
    file = tmp_path / 'config.py'
    cfg.dump(file)
    assert set(everywhere(load_config(str(file))).values()) == {254}
    wrong = {'val_evaluator.0.ignore_index': 255}
    with pytest.raises(ConfigError, match=re.escape('val_evaluator.0.ignore_index is 255')):
        load_config(str(file), cfg_options=wrong)
