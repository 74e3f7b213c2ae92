from __future__ import annotations

import re

import pytest
import timm
import torch
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS  # noqa: F401  # registers the scope

from mmseg_coop.models import CoopBackbone


@pytest.mark.parametrize(
    ('backbone', 'shapes'),
    [
        (dict(type='MobileNetV2', widen_factor=0.25, out_indices=(6,)), [(80, 2)]),
        (
            dict(type='mmpretrain.MobileNetV2', widen_factor=0.25, out_indices=(1, 6)),
            [(8, 16), (80, 2)],
        ),
        (
            dict(
                type='TIMMBackbone',
                model_name='efficientnet_lite0',
                pretrained=False,
                output_stride=16,
                out_indices=(1, 4),
            ),
            [(24, 16), (320, 4)],
        ),
        (
            dict(
                type='TIMMBackbone',
                model_name='swin_tiny_patch4_window7_224',
                pretrained=False,
                img_size=64,
                out_indices=(0, 3),
            ),
            [(96, 16), (768, 2)],
        ),
        (dict(type='Xception', depth=41, out_indices=(1, 4)), [(256, 16), (2048, 4)]),
    ],
    ids=['mmseg, one level', 'mmpretrain', 'timm', 'timm, NHWC', 'ours'],
)
def test_backbones_of_all_libraries_fit(backbone, shapes):
    resnet = dict(type='ResNetV1c', depth=18, stem_channels=8, base_channels=8, out_indices=(0, 3))
    model = CoopBackbone(networks=dict(top=backbone, bottom=resnet)).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        pyramids = model(image)
    assert [(level.shape[1], level.shape[2]) for level in pyramids['top']] == shapes
    assert all(level.shape[0] == 2 for level in pyramids['top'])
    assert [level.shape[1] for level in pyramids['bottom']] == [8, 64]


@pytest.mark.parametrize(
    ('normalize', 'input_normalize', 'message'),
    [
        (dict(left=dict(mean=[0], std=[1])), None, "unknown network 'left'.*'top'"),
        (dict(top=dict(mean=[0], std=[1])), None, 'needs to know how the image was normalised'),
        (dict(top=dict(mean=[0])), dict(mean=[0], std=[1]), 'a normalisation is dict'),
        (dict(top=dict(mean=[0, 0], std=[1])), dict(mean=[0], std=[1]), 'one value a channel'),
    ],
)
def test_wrong_normalisation_is_named(normalize, input_normalize, message):
    with pytest.raises(ValueError, match=message):
        CoopBackbone(
            networks=dict(top=dict(type='ResNetV1c', depth=18)),
            normalize=normalize,
            input_normalize=input_normalize,
        )


def test_a_backbone_without_maps_is_named():
    vit = dict(type='TIMMBackbone', model_name='test_vit', features_only=False, pretrained=False)
    with pytest.raises(
        ValueError, match=r"network 'top' returns a level of shape \(1, 101, 1000\)"
    ):
        CoopBackbone(networks=dict(top=vit))(torch.rand(1, 3, 160, 160))


def smallest_of_each_family():
    """The smallest model of each of timm's modules, as far as names tell."""
    sizes = re.compile('atto|femto|pico|nano|zepto|xxs|xs|tiny|small|_[abfmst]0|lite0|050|18')
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            rank = {name: (not name.startswith('test_'), not sizes.search(name)) for name in names}
            yield min(names, key=lambda name: (*rank[name], len(name), name))


@pytest.mark.slow
@pytest.mark.parametrize('name', list(smallest_of_each_family()))
def test_each_family_of_timm_returns_the_maps_that_it_declares(name):
    top = dict(type='TIMMBackbone', model_name=name, pretrained=False)
    model = CoopBackbone(networks=dict(top=top)).eval()
    timm_model = model.networks['top'].timm_model
    height, width = timm_model.pretrained_cfg['input_size'][1:]
    with torch.no_grad():
        levels = model(torch.rand(1, 3, height, width))['top']
    info = timm_model.feature_info
    assert [level.shape[1] for level in levels] == info.channels()
    for level, stride in zip(levels, info.reduction(), strict=True):
        # Some convolve without padding, or embed patches with a stride of their own.
        assert abs(level.shape[2] - height / stride) <= 4
        assert abs(level.shape[3] - width / stride) <= 4
