from __future__ import annotations

import pytest
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
        (dict(type='Xception', depth=41, out_indices=(1, 4)), [(256, 16), (2048, 4)]),
    ],
    ids=['mmseg, one level', 'mmpretrain', 'timm', 'ours'],
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
