from __future__ import annotations

import re
from typing import ClassVar

import pytest
import timm
import torch
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS

from mmseg_coop.models import CoopBackbone
from tests.conftest import BACKBONES
from tests.models.base import ModelSuite

RESNET, MOBILENET = BACKBONES.values()


GREY = dict(RESNET, in_channels=1)


def reading(**inputs):
    networks = dict(top=RESNET, bottom=GREY)
    return dict(networks=networks, inputs=inputs, input_normalize=dict(mean=[0] * 4, std=[1] * 4))


def normalized(**normalize):
    return dict(normalize=normalize, input_normalize=dict(mean=[0], std=[1]))


class TestCoopBackbone(ModelSuite):
    type = 'CoopBackbone'
    arguments: ClassVar = dict(networks=dict(top=RESNET, bottom=MOBILENET))
    variants: ClassVar = dict(
        plain={},
        single=dict(networks=dict(only=RESNET)),
        normalize=dict(
            normalize=dict(bottom=dict(mean=[0.5] * 3, std=[2.0] * 3)),
            input_normalize=dict(mean=[0.0] * 3, std=[1.0] * 3),
        ),
        inputs=dict(networks=dict(top=RESNET, bottom=MOBILENET), inputs=dict(bottom=(2, 2, 2))),
    )
    sizes = ((64, 64), (65, 97), (33, 50))
    refusals = (
        (dict(networks={}), 'networks is empty'),
        (dict(shared=True), 'configs differ; give top, bottom the same'),
        (dict(networks=dict(ensemble=RESNET)), "'ensemble' cannot name a network"),
        (normalized(left=dict(mean=[0], std=[1])), "unknown network 'left'.*'top'"),
        (dict(normalize=dict(top=dict(mean=[0], std=[1]))), 'to know how the image was normalised'),
        (normalized(top=dict(mean=[0])), 'a normalisation is dict'),
        (normalized(top=dict(mean=[0, 0], std=[1])), 'one value a channel'),
        (normalized(top=dict(mean=[0.0], std=[0.0])), 'std=.* divides'),
        (reading(left=(0,)), "unknown network 'left'.*'top'"),
        (reading(bottom=()), r"network 'bottom' are the channels \(\); give at least one"),
        (reading(bottom=(-1,)), 'number from 0 on'),
        (reading(bottom=(4,)), r'\(4,\), but the image has only 0 to 3'),
        (reading(top=(0, 1, 1)), r'\(0, 1, 1\), some of them twice'),
        (reading(top=(0, 3)), '2 in number, but its backbone takes 3; give it in_channels=2'),
        (
            dict(reading(bottom=(3,)), normalize=dict(bottom=dict(mean=[0] * 3, std=[1] * 3))),
            r"normalize of network 'bottom' has 3 values, but it reads the channels \(3,\)",
        ),
    )

    def shapes(self, model, size, batch):
        def at(stride):
            return tuple(-(-length // stride) for length in size)

        top, bottom = ((8, 4), (64, 16)), ((8, 4), (80, 32))
        levels = (*top, *bottom) if len(model.networks) > 1 else top
        return [(batch, channels, *at(stride)) for channels, stride in levels]


@torch.no_grad()
def test_each_network_reads_its_channels_in_its_own_normalisation():
    model = CoopBackbone(
        networks=dict(top=RESNET, bottom=GREY),
        inputs=dict(top=(0, 1, 2), bottom=(3,)),
        normalize=dict(bottom=dict(mean=[1.0], std=[4.0])),
        input_normalize=dict(mean=[9.0, 9.0, 9.0, 5.0], std=[7.0, 7.0, 7.0, 2.0]),
    ).eval()
    assert model.image_channels == 4
    image = torch.randn(1, 4, 32, 32)
    found = model(image)
    depth = image[:, 3:] * 2 + 5  # as it was before it was normalised
    for name, own in (('top', image[:, :3]), ('bottom', (depth - 1) / 4)):
        torch.testing.assert_close(found[name], model.networks[name](own))
    blind = model(image * torch.tensor([1.0, 1, 1, 0]).view(1, 4, 1, 1))
    assert torch.equal(blind['top'][-1], found['top'][-1])
    assert not torch.allclose(blind['bottom'][-1], found['bottom'][-1])
    with pytest.raises(ValueError, match=r"'bottom' reads the channels \[3\] .* have only 3"):
        model(image[:, :3])


def test_shared_networks_are_one_backbone():
    model = CoopBackbone(
        networks=dict(before=GREY, after=GREY), inputs=dict(before=(0,), after=(1,)), shared=True
    )
    optimizer = dict(type='SGD', lr=0.1)
    paramwise = dict(custom_keys=dict(conv=dict(lr_mult=0.1)))
    wrapper = build_optim_wrapper(model, dict(optimizer=optimizer, paramwise_cfg=paramwise))
    trained = [p for group in wrapper.optimizer.param_groups for p in group['params']]
    assert len(trained) == len([*MODELS.build(GREY).parameters()])
    image = torch.randn(2, 2, 32, 32)
    for name in ('before', 'after'):  # each alone teaches all of it
        model.zero_grad()
        sum(level.square().mean() for level in model(image)[name]).backward()
        assert all(parameter.grad.any() for parameter in trained)
    found, swapped = model.eval()(image), model(image.flip(1))
    assert not torch.equal(found['before'][-1], found['after'][-1])
    assert all(map(torch.equal, found['before'], swapped['after']))


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


def maps_and_model(name, device):
    """The maps of a model of timm for an image of the size it is meant for, and the model."""
    top = dict(type='TIMMBackbone', model_name=name, pretrained=False)
    with torch.device(device), torch.no_grad():
        model = CoopBackbone(networks=dict(top=top)).eval()
        timm_model = model.networks['top'].timm_model
        return model(torch.rand(1, *timm_model.pretrained_cfg['input_size']))['top'], timm_model


@pytest.mark.slow
@pytest.mark.parametrize('name', list(smallest_of_each_family()))
def test_each_family_of_timm_returns_the_maps_that_it_declares(name):
    try:
        levels, timm_model = maps_and_model(name, 'meta')  # shapes are all that is asked for
    except RuntimeError as error:
        if 'meta' not in str(error).lower():
            raise
        levels, timm_model = maps_and_model(name, 'cpu')  # its shapes come from values
    height, width = timm_model.pretrained_cfg['input_size'][1:]
    info = timm_model.feature_info
    assert [level.shape[1] for level in levels] == info.channels()
    for level, stride in zip(levels, info.reduction(), strict=True):
        # Some convolve without padding, or embed patches with a stride of their own.
        assert abs(level.shape[2] - height / stride) <= 4
        assert abs(level.shape[3] - width / stride) <= 4
