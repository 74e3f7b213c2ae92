"""Channels of feature pyramids are found without a trace."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS  # noqa: F401  # registers the scope
from mmseg.registry import MODELS
from torch import nn
from torch.nn.functional import pixel_unshuffle

from mmseg_coop.errors import InputError
from mmseg_coop.models import CoopBackbone
from mmseg_coop.models._channels import PyramidChannels, image_channels
from tests.conftest import BACKBONES


class OnCpuOnly(BaseModule):
    """Looks at a value of the image, which the meta device does not have."""

    def forward(self, x):
        return x[:, :2] * x.sum().item()


class OnGpuOnly(BaseModule):
    def forward(self, x):
        raise RuntimeError('no kernel for the CPU')


class Folded(BaseModule):
    """Its first convolution takes more channels than the image has, as of timm's TResNet."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(4 * channels, 6, 1)

    def forward(self, x):
        return self.conv(pixel_unshuffle(x, 2))


MIT = dict(
    type='MixVisionTransformer',
    embed_dims=8,
    num_layers=[1, 1, 1, 1],
    num_heads=[1, 2, 5, 8],
    out_indices=(0, 3),
)
BEIT = dict(type='BEiT', img_size=64, embed_dims=24, num_layers=2, num_heads=2, out_indices=[1])
VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=12, num_layers=1, num_heads=2, feedforward_channels=8),
    img_size=64,
    out_type='featmap',
)
TIMM = dict(type='TIMMBackbone', pretrained=False)
CONVNEXT = dict(TIMM, model_name='convnext_atto', out_indices=(0, 2))
#: Its maps have the channels last.
SWIN = dict(TIMM, model_name='swin_tiny_patch4_window7_224', img_size=64, out_indices=(1,))


@pytest.mark.parametrize(
    ('backbone', 'size', 'expected'),
    [
        (BACKBONES['resnet'], (64, 48), (8, 64)),
        (dict(BACKBONES['resnet'], in_channels=5), None, (8, 64)),
        (BACKBONES['mobilenet'], 33, (8, 80)),
        (MIT, None, (8, 64)),
        (BEIT, None, (24,)),
        (VIT, None, (12,)),
        (CONVNEXT, None, (40, 160)),
        (SWIN, 64, (192,)),
        (dict(type='Xception', depth=41, out_indices=(1, 4)), None, (256, 2048)),
        (dict(type=OnCpuOnly), None, (2,)),
    ],
    ids=lambda value: str(value.get('model_name', value['type'])) if 'type' in str(value) else '',
)
@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
def test_channels_are_those_of_the_maps_and_nothing_else_changes(
    backbone, size, expected, training
):
    model = CoopBackbone(networks=dict(top=copy.deepcopy(backbone))).train(training)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    channels = PyramidChannels(model.networks, {}, size)
    assert not channels
    assert channels['top'] == expected
    assert channels == dict(top=expected)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    assert all(parameter.device.type == 'cpu' for parameter in model.parameters())
    assert all(module.training == training for module in model.modules() if module is not model)
    with torch.no_grad():
        levels = model.eval()(torch.rand(1, backbone.get('in_channels', 3), 64, 64))['top']
    assert tuple(level.shape[1] for level in levels) == expected


class TestSegmentor:
    @pytest.fixture(autouse=True)
    def _configs(self, coop_model_cfg):
        self.cfg = coop_model_cfg

    def test_a_network_is_asked_with_the_channels_that_it_reads(self):
        """Of T2T-ViT, which has no convolution that would tell, and of a stem of one channel."""
        t2t = dict(
            type='mmpretrain.T2T_ViT',
            img_size=64,
            in_channels=1,
            embed_dims=16,
            num_layers=1,
            t2t_cfg=dict(token_dims=8, use_performer=False),
            layer_cfgs=dict(num_heads=2, feedforward_channels=16),
            out_type='featmap',
        )
        cfg = self.cfg()
        cfg['data_preprocessor'].update(mean=[0], std=[1])
        cfg['backbone']['inputs'] = dict(top=(3,), bottom=(0, 1, 2))
        cfg['backbone']['networks']['top'] = t2t
        cfg['decode_head'].update(networks=dict(top=dict(low_level_index=0), bottom={}))
        model = MODELS.build(cfg)
        assert model.pyramid_channels['top'] == (16,)

    @pytest.mark.parametrize(
        ('preprocessor', 'inputs', 'expected'),
        [
            (dict(mean=[0] * 3, std=[1] * 3), {}, 3),
            (dict(type='CoopDataPreProcessor', mean=[0] * 6, std=[1] * 6), dict(top=(4, 4, 4)), 6),
            (dict(mean=[0], std=[1]), dict(top=(4, 4, 4)), 5),
            (dict(mean=None, std=None), {}, 3),
        ],
    )
    def test_channels_of_the_image(self, preprocessor, inputs, expected):
        cfg = self.cfg()
        cfg['data_preprocessor'].update(preprocessor, bgr_to_rgb=False)
        cfg['backbone']['inputs'] = dict(inputs, bottom=(0, 1, 2)) if inputs else {}
        assert image_channels(MODELS.build(cfg)) == expected
        single = dict(
            type='EncoderDecoder',
            backbone=dict(BACKBONES['resnet'], in_channels=2),
            decode_head=dict(type='FCNHead', in_channels=64, channels=8, num_classes=2),
        )
        assert image_channels(MODELS.build(single)) == 2

    def test_what_is_left_out_is_what_would_be_written(self):
        """The same parameters in the same order, and the same random numbers."""
        written, found = self.cfg(), self.cfg(dict(top='resnet', bottom='mobilenet'))
        found['decode_head']['networks'] = dict(top={}, bottom=dict(in_channels=80))
        given = copy.deepcopy(found)
        states = []
        for cfg in (written, found):
            torch.manual_seed(0)
            model = MODELS.build(cfg)
            model.init_weights()
            states.append(model.state_dict())
        assert [*states[0]] == [*states[1]]
        assert all(map(torch.equal, states[0].values(), states[1].values()))
        assert found == given

    @pytest.mark.parametrize(
        ('top', 'message'),
        [
            (dict(in_channels=12), r"of network 'top' was built for 12 channels .*\[8, 64\]"),
            (dict(low_level_in_channels=4), 'was built for 4 channels at level 0'),
            (dict(in_index=2), r"of network 'top' takes level 2 .* returns 2 levels"),
            (dict(low_level_index=-3), 'takes level -3'),
        ],
    )
    def test_what_does_not_fit_is_named_when_it_is_built(self, top, message):
        cfg = self.cfg()
        cfg['decode_head']['networks']['top'] = top
        with pytest.raises(ValueError, match=message):
            MODELS.build(cfg)

    def test_written_channels_are_compared_before_the_training(self):
        cfg = self.cfg()
        MODELS.build(cfg).check_channels()
        cfg['decode_head']['networks']['bottom']['in_channels'] = 81
        with pytest.raises(ValueError, match="'bottom' was built for 81 channels"):
            MODELS.build(cfg).check_channels()

    @pytest.mark.parametrize('top', [BACKBONES['resnet'], dict(CONVNEXT, out_indices=(0, 3))])
    def test_a_backbone_that_does_not_take_the_image_is_named_before_the_training(self, top):
        cfg = self.cfg()
        written = cfg['decode_head']['networks']['top']
        cfg['data_preprocessor'].update(
            type='CoopDataPreProcessor', mean=[0] * 4, std=[1] * 4, bgr_to_rgb=False
        )
        cfg['backbone'].update(inputs=dict(bottom=(0, 1, 2)))
        cfg['backbone']['networks']['top'] = dict(top, in_channels=4)
        cfg['decode_head']['networks']['top'] = {}
        MODELS.build(cfg).check_channels()
        cfg['backbone']['networks']['top'] = top
        message = "'top' gets images of 4 channels, but its backbone takes 3; give it in_channels=4"
        with pytest.raises(InputError, match=message):
            MODELS.build(cfg)
        cfg['decode_head']['networks']['top'] = written
        model = MODELS.build(cfg)
        with pytest.raises(InputError, match=message):
            model.check_channels()

    def test_a_backbone_may_fold_the_image(self):
        cfg = self.cfg()
        cfg['backbone']['networks']['top'] = dict(type=Folded, channels=3)
        cfg['decode_head']['networks']['top'] = dict(low_level_index=0)
        model = MODELS.build(cfg)
        assert model.pyramid_channels['top'] == (6,)

    def test_a_backbone_that_cannot_be_asked_needs_written_channels(self):
        cfg = self.cfg()
        cfg['backbone']['networks']['top'] = dict(type=OnGpuOnly)
        MODELS.build(cfg).check_channels()
        cfg['decode_head']['networks']['top'] = {}
        message = r"'top' does not run on an image of 64x64 .*no kernel for the CPU.*in_channels"
        with pytest.raises(ValueError, match=message):
            MODELS.build(cfg)


def test_a_head_alone_says_what_to_do():
    head = dict(type='CrossCoopDPAHead', networks=dict(top={}), channels=8, num_classes=3)
    with pytest.raises(ValueError, match="'top': in_channels is left out; give it, or pyramid_ch"):
        MODELS.build(head)
    built = MODELS.build(dict(head, pyramid_channels=dict(top=(4, 6))))
    assert built.networks['top'].in_channels == 6
