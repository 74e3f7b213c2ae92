"""Rates and weight decay of every parameter under layer-wise decay."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.utils import import_modules_from_strings
from mmseg.engine.optimizers import LearningRateDecayOptimizerConstructor
from mmseg.registry import MODELS
from torch import nn

from mmseg_coop.errors import ConfigError

LR, WEIGHT_DECAY, RATE = 1.0, 0.05, 0.5
TIMM = dict(type='TIMMBackbone', features_only=True, pretrained=False)
VIT = dict(img_size=(64, 64), embed_dims=16, num_layers=2, num_heads=2, out_indices=(0, 1))
ENDS = dict(out_indices=(0, 3))
SWIN = dict(embed_dims=8, depths=(1, 2, 1, 1), num_heads=(1,) * 4, pretrain_img_size=64)
TIMM_VIT = dict(model_name='vit_tiny_patch16_224', depth=2, embed_dim=12, img_size=64)
CONVNEXT = dict(depths=[1, 1, 9, 1], channels=[8] * 4)
BACKBONES = dict(
    convnext=dict(type='mmpretrain.ConvNeXt', arch=CONVNEXT, gap_before_final_norm=False, **ENDS),
    swin=dict(type='SwinTransformer', use_abs_pos_embed=True, **SWIN, **ENDS),
    vit=dict(type='VisionTransformer', final_norm=True, **VIT),
    mae=dict(type='MAE', **VIT),
    timm_vit=dict(TIMM, **TIMM_VIT, out_indices=(0, 1)),
    timm_convnext=dict(
        TIMM, model_name='convnext_atto', depths=(1, 2, 1, 3), dims=(8,) * 4, **ENDS
    ),
    resnet=dict(type='ResNetV1c', depth=18, stem_channels=8, base_channels=8, **ENDS),
)
VIT_LAYERS = {3: ('patch_embed', 'pos_embed', 'cls_token'), 2: ('layers.0.',), 1: ('layers.1.',)}
#: What names of parameters begin with, by the number of layers up to the head.
LAYERS = dict(
    convnext={
        7: ('downsample_layers.0.',),
        6: ('stages.0.',),
        5: ('downsample_layers.1.', 'stages.1.'),
        # of the third stage, three blocks are one layer
        4: ('downsample_layers.2.', 'stages.2.0.', 'stages.2.1.', 'stages.2.2.'),
        3: ('stages.2.3.', 'stages.2.4.', 'stages.2.5.'),
        2: ('stages.2.6.', 'stages.2.7.', 'stages.2.8.'),
        1: ('downsample_layers.3.', 'stages.3.'),
        0: ('norm',),
    },
    swin={
        6: ('patch_embed.', 'absolute_pos_embed'),
        5: ('stages.0.',),
        4: ('stages.1.blocks.0.',),
        3: ('stages.1.blocks.1.', 'stages.1.downsample.'),
        2: ('stages.2.',),
        1: ('stages.3.',),
        0: ('norm',),
    },
    vit={**VIT_LAYERS, 0: ('ln1.',)},
    mae=VIT_LAYERS,
    timm_vit={
        3: tuple(f'timm_model.model.{name}' for name in ('patch_embed', 'pos_embed', 'cls_token')),
        2: ('timm_model.model.blocks.0.',),
        1: ('timm_model.model.blocks.1.',),
    },
    timm_convnext={
        8: ('timm_model.stem_',),
        7: ('timm_model.stages_0.',),
        6: ('timm_model.stages_1.downsample.', 'timm_model.stages_1.blocks.0.'),
        5: ('timm_model.stages_1.blocks.1.',),
        4: ('timm_model.stages_2.',),
        3: ('timm_model.stages_3.downsample.', 'timm_model.stages_3.blocks.0.'),
        2: ('timm_model.stages_3.blocks.1.',),
        1: ('timm_model.stages_3.blocks.2.',),
    },
)


def build(*names):
    """A pair, or more, of these backbones; a single one is that of an ordinary segmentor."""
    import_modules_from_strings('mmpretrain.models')
    backbones = copy.deepcopy({name: BACKBONES[name] for name in names})
    if len(names) == 1:
        head = dict(type='FCNHead', in_channels=16, channels=4, num_classes=3)
        return MODELS.build(
            dict(type='EncoderDecoder', backbone=backbones[names[0]], decode_head=head)
        )
    heads = {name: dict(type='FCNHead', in_index=-1) for name in names}
    return MODELS.build(
        dict(
            type='CrossCoopEncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
            backbone=dict(type='CoopBackbone', networks=backbones),
            decode_head=dict(type='CoopHead', networks=heads, channels=4, num_classes=3),
        )
    )


def optim_wrapper(model, constructor='CoopLayerDecayOptimWrapperConstructor', lr=LR, **paramwise):
    optimizer = dict(type='AdamW', weight_decay=WEIGHT_DECAY, **(dict(lr=lr) if lr else {}))
    return build_optim_wrapper(
        model, dict(constructor=constructor, optimizer=optimizer, paramwise_cfg=paramwise)
    )


def settings(wrapper, model):
    """Rate and weight decay of every parameter by its name; each is there once."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [
        (names[parameter], (group['lr'], group['weight_decay']))
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    ]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


def test_every_parameter_has_the_rate_of_its_layer():
    model = build(*BACKBONES)
    wrapper = optim_wrapper(model, decay_rate=dict.fromkeys(LAYERS, RATE))
    found = settings(wrapper, model)
    for name, (rate, _) in found.items():
        *_, network, rest = name.split('.', 3) if name.startswith('backbone.') else ('', name)
        known = LAYERS.get(network, {0: ('',)})
        (layers,) = [n for n, starts in known.items() if rest.startswith(starts)]
        assert rate == pytest.approx(LR * RATE**layers), name
    for network, known in LAYERS.items():  # no layer is empty
        rates = {found[n][0] for n in found if n.startswith(f'backbone.networks.{network}.')}
        assert rates == {LR * RATE**layers for layers in known}


def test_vectors_and_embeddings_have_no_weight_decay():
    model = build('swin', 'mae', 'timm_vit')
    found = settings(optim_wrapper(model, decay_rate=dict(swin=RATE)), model)
    matrices = {
        f'{name}.weight'
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    assert {name for name, (_, decay) in found.items() if decay} == matrices
    assert {decay for _, decay in found.values()} == {0, WEIGHT_DECAY}


@pytest.mark.parametrize('name', ['mae', 'convnext'])
def test_a_single_backbone_has_the_rates_of_mmseg(name):
    model = build(name)
    theirs = LearningRateDecayOptimizerConstructor.__name__
    layers = dict(mae=2, convnext=6)[name]
    expected = settings(optim_wrapper(model, theirs, decay_rate=RATE, num_layers=layers), model)
    found = settings(optim_wrapper(model, decay_rate=RATE), model)
    assert {n: found[n][0] for n in found} == {n: expected[n][0] for n in found}


def test_custom_keys_multiply_the_rates_of_the_layers():
    model = build('vit', 'resnet')
    keys = dict(vit=dict(lr_mult=0.1), resnet=dict(lr_mult=0.2, decay_mult=2))
    keys = {f'backbone.networks.{name}': key for name, key in keys.items()}
    found = settings(optim_wrapper(model, decay_rate=dict(vit=RATE), custom_keys=keys), model)
    rates = [found[f'backbone.networks.vit.{name}'] for name in ('pos_embed', 'layers.1.ln1.bias')]
    assert rates == [(pytest.approx(LR * 0.1 * RATE**n), 0) for n in (3, 1)]
    for name, setting in found.items():
        if name.startswith('backbone.networks.resnet.'):
            assert setting == (LR * 0.2, WEIGHT_DECAY * 2)
        elif name.startswith('decode_head.'):
            assert setting[0] == LR


def test_a_step_moves_each_layer_at_its_rate():
    """The first step of Adam moves every weight by its rate."""
    model = build('swin', 'resnet')
    wrapper = optim_wrapper(model, lr=1e-3, decay_rate=dict(swin=RATE))
    parts = ('swin.stages.1.blocks.0.norm1', 'swin.stages.3.blocks.0.norm1', 'resnet.layer4.1.bn1')
    weights = [model.backbone.networks.get_submodule(part).weight for part in parts]
    before = [weight.detach().clone() for weight in weights]
    logits = model(torch.rand(2, 3, 64, 64))
    wrapper.update_params(sum(x.square().mean() for x in logits.values()))
    moved = [(w - old).abs().max().item() for w, old in zip(weights, before, strict=True)]
    assert moved == pytest.approx([1e-3 * RATE**4, 1e-3 * RATE, 1e-3], rel=0.02)


@pytest.mark.parametrize(
    ('paramwise', 'said'),
    [
        ({}, 'has no decay_rate; '),
        (dict(decay_rate=0.9, num_layers=12), "has 'num_layers'; .* Layers are counted"),
        (dict(decay_rate=0.9, norm_decay_mult=0), "has 'norm_decay_mult'"),
        (dict(decay_rate=1.2), 'decay_rate is 1.2; give a number above 0 and at most 1'),
        (dict(decay_rate=dict(vit='0.9')), "is {'vit': '0.9'}; give"),
        (dict(decay_rate=dict(vt=0.9)), r"unknown network 'vt'; .* are \['vit', 'resnet'\]\."),
        (dict(decay_rate=0.9), r"network 'resnet' \(ResNetV1c\) are not known\. They are for"),
    ],
)
def test_what_cannot_be_meant_is_refused(paramwise, said):
    model = build('vit', 'resnet')
    with pytest.raises(ConfigError, match=rf'^optim_wrapper\.paramwise_cfg.*{said}'):
        optim_wrapper(model, **(paramwise or dict(custom_keys={})))
    with pytest.raises(ConfigError, match=r'^optim_wrapper\.optimizer has no lr'):
        optim_wrapper(model, lr=None, decay_rate=0.9)
