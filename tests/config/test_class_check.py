from __future__ import annotations

import re

import pytest
from mmengine.config import Config
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS
from torch import nn

from mmseg_coop.apis import check_data
from mmseg_coop.config.class_check import check_classes
from mmseg_coop.engine.hooks.run_check_hook import check_model
from mmseg_coop.errors import ConfigError
from mmseg_coop.models import DeepLabV3PlusHead

NAMES = ('wall', 'crack', 'stain')


def config(num_classes=3, val=NAMES, **decode_head):
    def loader(*names):
        sets = [dict(type='BaseSegDataset', metainfo=dict(classes=one)) for one in names]
        return dict(dataset=dict(type='ConcatDataset', datasets=sets))

    head = dict(type='FCNHead', in_channels=8, channels=8, num_classes=num_classes, **decode_head)
    return Config(
        dict(
            model=dict(type='EncoderDecoder', decode_head=head),
            train_dataloader=loader(NAMES, list(NAMES)),
            val_dataloader=loader(val),
        )
    )


def test_the_same_classes_pass_whatever_their_colours():
    cfg = config()
    cfg.val_dataloader.dataset.datasets[0].metainfo.palette = [[1, 2, 3]] * 3
    check_classes(cfg)


@pytest.mark.parametrize(
    ('val', 'message'),
    [
        (('crack', 'wall', 'stain'), "class 0 is 'wall' in train_dataloader.dataset"),
        (('wall', 'crack', 'Stain'), "class 2 is 'stain' in train_dataloader.dataset"),
        (
            ('wall', 'crack'),
            'the number of classes of val_dataloader.dataset (BaseSegDataset) is 2',
        ),
    ],
)
def test_other_names_or_another_order_are_refused(val, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_classes(config(val=val))
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_data(config(val=val), splits=('train', 'val'))


def test_sets_of_one_split_are_compared_as_well():
    cfg = config()
    cfg.train_dataloader.dataset.datasets[1].metainfo.classes = NAMES[::-1]
    with pytest.raises(ConfigError, match=r"but 'stain' in train_dataloader.dataset"):
        check_classes(cfg)


def test_classes_in_a_file_are_compared(tmp_path):
    file = tmp_path / 'classes.txt'
    file.write_text('\n'.join(NAMES))
    check_classes(config(val=str(file)))
    file.write_text('\n'.join(NAMES[::-1]))
    with pytest.raises(ConfigError, match="class 0 is 'wall'"):
        check_classes(config(val=str(file)))


def test_a_single_class_is_refused_with_the_way_for_two():
    with pytest.raises(ConfigError, match=r'num_classes is 1.*num_classes=2.*binary_segmentation'):
        check_classes(config(num_classes=1))


LOSSES = [
    (dict(class_weight=[1.0, 2.0]), {}, 'class_weight=[1.0, 2.0], 2 numbers, but the head has 3'),
    (dict(type='TverskyLoss', class_weight=[1.0] * 4), {}, '4 numbers, but the head has 3 outputs'),
    (
        dict(use_sigmoid=True, class_weight=[1.0] * 3),
        {},
        'class_weight and use_sigmoid=True, which go together with out_channels=1 only',
    ),
    (
        dict(use_sigmoid=True, class_weight=[1.0] * 2),
        dict(num_classes=2, out_channels=1),
        '2 numbers, but the head has 1 outputs',
    ),
    *(
        (loss, dict(num_classes=2, out_channels=1), 'cannot learn two classes from out_channels=1')
        for loss in (
            dict(use_sigmoid=False),
            dict(type='DiceLoss'),
            dict(type='TverskyLoss'),
            dict(type='FocalLoss'),
        )
    ),
    (dict(class_weight=[1.0, 2.0, 3.0]), {}, ''),
    (dict(use_sigmoid=True, class_weight=[3.0]), dict(num_classes=2, out_channels=1), ''),
    (
        dict(type='LovaszLoss', loss_type='binary', per_image=True),
        dict(num_classes=2, out_channels=1),
        '',
    ),
]


def build(head_class, loss, options):
    arguments = dict(in_channels=8, channels=8, in_index=0, num_classes=3) | options
    loss = {'type': 'CrossEntropyLoss', **loss}
    if head_class is DeepLabV3PlusHead:
        arguments['low_level_in_channels'] = 8
    return head_class(loss_decode=[loss], **arguments)


@pytest.mark.parametrize(('loss', 'options', 'message'), LOSSES)
def test_losses_that_do_not_fit_the_outputs_are_refused(loss, options, message):
    plain = nn.ModuleDict(dict(auxiliary_head=build(FCNHead, loss, options)))
    if not message:
        check_model(plain)
        build(DeepLabV3PlusHead, loss, options)
        return
    with pytest.raises(ConfigError, match=rf'model.auxiliary_head: .*{re.escape(message)}'):
        check_model(plain)
    with pytest.raises(ValueError, match=re.escape(message)):
        build(DeepLabV3PlusHead, loss, options)


@pytest.mark.parametrize(
    'own',
    [
        dict(num_classes=5),
        dict(ignore_index=0),
        dict(threshold=0.9),
        dict(out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)),
    ],
)
def test_networks_share_classes_ignored_label_and_threshold(coop_model_cfg, own):
    loss = dict(type='CrossEntropyLoss')
    cfg = coop_model_cfg(num_classes=2, loss_decode=loss)
    cfg['decode_head']['networks']['top'].update(own)
    key = next(iter(own))
    with pytest.raises(ValueError, match=rf'{key} is \{{'):
        MODELS.build(cfg)


def test_networks_that_agree_among_themselves_but_not_with_the_head_are_refused(coop_model_cfg):
    cfg = coop_model_cfg(num_classes=2)
    for network in cfg['decode_head']['networks'].values():
        network['num_classes'] = 5
    with pytest.raises(ValueError, match=r"num_classes is {'top': 5, 'bottom': 5, 'all': 2}"):
        MODELS.build(cfg)
