"""One network of a trained model, taken out as a plain model of mmseg."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model
from mmseg.models import EncoderDecoder

from mmseg_coop.config.parts import find_types, walk
from tests.conftest import MINI, forget_runs

EXTRACT = 'tools/model_converters/extract.py'
#: The miniature pair with a third network, which sends to top and is taught by both.
DISTILL = f"""
_base_ = '{MINI}'
model = dict(
    backbone=dict(
        networks=dict(light={{{{_base_.model.backbone.networks.bottom}}}}), normalize=NORMALIZE
    ),
    decode_head=dict(
        networks=dict(light={{{{_base_.model.decode_head.networks.bottom}}}}),
        topology=dict(_delete_=True, top=['bottom', 'light'], bottom=['top']),
        transfer=[dict(teacher='ensemble', student='light')],
    ),
    test_cfg=dict(output='light'),
)
"""
#: SegFormer, which sends to a network with a neck; all parts but the pair itself are mmseg's.
SEGFORMER = f"""
_base_ = '{MINI}'
mit = dict(embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 5, 8])
top = dict(_delete_=True, type='MixVisionTransformer', **mit)
bottom = dict(_delete_=True, type='MobileNetV2', out_indices=(1, 6))
neck = dict(type='FPN', out_channels=8, num_outs=2)
heads = dict(
    top=dict(type='SegformerHead', in_index=[0, 1, 2, 3]),
    bottom=dict(type='FPNHead', in_index=[0, 1], feature_strides=[4, 8]),
)
head = dict(type='CoopHead', networks=heads, channels=8, num_classes=11)
model = dict(
    backbone=dict(networks=dict(top=top, bottom=bottom)),
    neck=dict(type='CoopNeck', networks=dict(bottom=neck)),
    decode_head=dict(_delete_=True, topology=dict(bottom=['top']), **head),
    test_cfg=dict(output='top'),
)
test_evaluator = dict(_scope_='mmseg_coop')  # as inherited by mmseg_coop::
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name='model.py', **words):
        for word, value in words.items():
            text = text.replace(word, value)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def predictions(mini_data, *models):
    """What mmseg's interface says of an image with each config and checkpoint."""
    image = next(Path(mini_data(), 'img_dir/test').iterdir())
    for config, checkpoint in models:
        model = init_model(str(config), str(checkpoint), device='cpu')
        yield model, inference_model(model, str(image))


def test_a_taught_network_says_the_same_alone(
    run_tool, write, mini_data, run_options, tmp_path, train_batch
):
    config = write(DISTILL, NORMALIZE='None')
    run_tool('tools/train.py', config, '--work-dir', tmp_path, *run_options(mini_data()))
    (log,) = tmp_path.glob('*/vis_data/scalars.json')
    assert '"decode.light.loss_transfer_ensemble": ' in log.read_text()
    trained = tmp_path / 'iter_4.pth'
    said = run_tool(EXTRACT, config, trained, '--network', 'light', '--out', tmp_path / 'out')
    assert 'light.py: needs mmseg, mmseg_coop (DeepLabV3PlusHead)\n' in said
    assert said.endswith('logits are equal\n')
    both = [(config, trained), (tmp_path / 'out/light.py', tmp_path / 'out/light.pth')]
    (model, whole), (plain, alone) = predictions(mini_data, *both)
    assert type(plain) is EncoderDecoder
    assert plain.dataset_meta['classes'] == [*model.dataset_meta['classes']]
    assert torch.equal(alone.seg_logits.data, whole.seg_logits.data)
    assert torch.equal(alone.pred_sem_seg.data, whole.pred_outputs.light)
    # and it can be trained further
    plain.train()
    losses = plain(**plain.data_preprocessor(train_batch(), training=True), mode='loss')
    losses['decode.loss_ce'].backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())


def test_parts_of_mmseg_work_without_this_project(run_tool, write, untrained, mini_data, tmp_path):
    config = write(SEGFORMER)
    checkpoint = untrained(config, tmp_path / 'model.pth', meta={})
    said = run_tool(EXTRACT, config, checkpoint, '--network', 'top', '--out', tmp_path / 'out')
    assert 'top.py: needs mmseg\n' in said
    config_alone, checkpoint_alone = tmp_path / 'out/top.py', tmp_path / 'out/top.pth'
    assert not re.search('coop', config_alone.read_text().split('\n', 1)[1], re.IGNORECASE)
    types = [
        target
        for name, value in Config.fromfile(config_alone).items()
        for _, part in walk(value, name)
        for target in find_types(part.get('type'))
    ]
    assert len(types) > 10
    assert not [kind for kind in types if kind.__module__.startswith('mmseg_coop')]
    both = [(config, checkpoint), (config_alone, checkpoint_alone)]
    (_, whole), (_, alone) = predictions(mini_data, *both)
    assert torch.equal(alone.seg_logits.data, whole.seg_logits.data)
    measured = measure(config_alone, checkpoint_alone, mini_data(), tmp_path / 'test')
    assert measured['mIoU'] > 0
    assert 'top/mIoU' not in measured


def measure(config, checkpoint, data_root, work_dir):
    """Test as mmengine does."""
    cfg = Config.fromfile(config)
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.test_dataloader.dataset.data_root = str(data_root)
    kept = ('model', 'test_dataloader', 'test_evaluator', 'test_cfg', 'visualizer')
    cfg = dict(
        {key: cfg[key] for key in kept},
        load_from=str(checkpoint),
        work_dir=str(work_dir),
        default_scope='mmseg',
    )
    forget_runs()
    return Runner.from_cfg(Config(cfg)).test()


def test_its_own_normalisation_becomes_that_of_the_data_preprocessor(
    run_tool, write, untrained, mini_data, tmp_path
):
    own = dict(light=dict(mean=[100.0, 90.0, 80.0], std=[50.0, 60.0, 70.0]))
    config = write(DISTILL, NORMALIZE=repr(own))
    checkpoint = untrained(config, tmp_path / 'model.pth', meta={})
    said = run_tool(EXTRACT, config, checkpoint, '--network', 'light', '--out', tmp_path)
    assert re.search(r'logits (are equal|differ by up to \S+ through rounding)\n$', said)
    both = [(config, checkpoint), (tmp_path / 'light.py', tmp_path / 'light.pth')]
    (_, whole), (plain, alone) = predictions(mini_data, *both)
    assert plain.cfg.model.data_preprocessor.mean == own['light']['mean']
    torch.testing.assert_close(alone.seg_logits.data, whole.seg_logits.data, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ('network', 'message'),
    [
        ('top', "'top' receives feature maps from bottom, light, without which"),
        ('bottom', "'bottom' receives feature maps from top, without"),
        ('lihgt', "--network 'lihgt' is none of top, bottom, light; did you mean light?"),
        ('ensemble', "--network 'ensemble' is none of top, bottom, light."),
        ('taken', 'taken.pth'),
    ],
)
def test_what_cannot_be_taken_out_is_refused(
    network, message, run_tool, write, untrained, tmp_path
):
    config = write(DISTILL, NORMALIZE='None')
    checkpoint = untrained(config, tmp_path / 'model.pth', meta={})
    (tmp_path / 'taken.pth').write_text('mine')
    words = (config, checkpoint, '--network', network, '--out', tmp_path)
    assert message in run_tool(EXTRACT, *words, code=1)
    assert {file.name for file in tmp_path.iterdir()} == {'model.py', 'model.pth', 'taken.pth'}


def test_a_backbone_that_heads_of_mmseg_do_not_take_is_refused(
    run_tool, write, untrained, tmp_path
):
    swin = dict(
        type='TIMMBackbone',
        model_name='swin_tiny_patch4_window7_224',
        features_only=True,
        pretrained=False,
        img_size=128,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        out_indices=(0, 3),
    )
    text = f"_base_ = '{MINI}'\nmodel = dict(decode_head=dict(topology='none', networks=dict(top="
    text += 'dict(_delete_=True))), backbone=dict(networks=dict(top=dict(_delete_=True, **SWIN))))'
    config = write(text, SWIN=repr(swin))
    checkpoint = untrained(config, tmp_path / 'model.pth', meta={})
    words = (config, checkpoint, '--network', 'top', '--out', tmp_path / 'out')
    message = r"backbone of network 'top' returns \[\(1, 32, 32, 8\), .* take \[\(1, 8, 32, 32\),"
    assert re.search(message, run_tool(EXTRACT, *words, code=1))
    assert not (tmp_path / 'out').exists()


def test_one_network_already(run_tool, untrained, tmp_path):
    config = MINI.parents[1] / 'dpanet/dpanet_mnv2-d8_1xb6-600_camvid-180x240.py'
    checkpoint = untrained(config, tmp_path / 'model.pth', meta={})
    words = (config, checkpoint, '--network', 'top', '--out', tmp_path)
    expected = 'error: the model, of type EncoderDecoder, is one network already.'
    assert run_tool(EXTRACT, *words, code=1) == expected
