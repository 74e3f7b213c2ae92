"""Heads of any kind that offer sites, alone under mmseg's segmentor and side by side."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from mmseg.registry import MODELS

from mmseg_coop.models import CoopHead, DeepLabV3PlusHead, DPAHead

TOP = dict(type='DeepLabV3PlusHead', in_channels=32, low_level_in_channels=8)
BOTTOM = dict(type='DPAHead', in_channels=16)


def pyramids():
    top = [torch.rand(2, 8, 16, 16), torch.rand(2, 32, 4, 4)]
    return dict(top=top, bottom=[torch.rand(2, 16, 8, 8)])


def build(top=TOP, bottom=BOTTOM, **arguments):
    arguments = {**dict(channels=8, num_classes=3), **arguments}
    return CoopHead(networks=dict(top=top, bottom=bottom), **arguments)


@torch.no_grad()
def test_heads_of_two_types_exchange_at_the_site_that_both_have():
    head, x = build().eval(), pyramids()
    assert [type(network) for network in head.networks.values()] == [DeepLabV3PlusHead, DPAHead]
    assert list(head.cooperation.paths) == ['input']
    out = head(x)
    merged = head.cooperation.paths['input'][0](dict(top=x['top'][-1], bottom=x['bottom'][-1]))
    alone = dict(
        top=head.networks['top']([x['top'][0], merged['top']]),
        bottom=head.networks['bottom']([merged['bottom']]),
    )
    assert all(torch.equal(out[name], alone[name]) for name in out)
    assert not torch.equal(out['top'], head.networks['top'](x['top']))


@torch.no_grad()
def test_without_an_exchange_they_are_the_heads_alone():
    head, x = build(connections=[]).eval(), pyramids()
    out = head(x)
    assert all(torch.equal(out[name], head.networks[name](x[name])) for name in out)


def test_heads_of_two_types_train(train_batch):
    head = build(loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)).train()
    losses = head.loss(pyramids(), train_batch((16, 16), num_classes=3)['data_samples'])
    names = {name for name in losses if 'loss' in name}
    bottom = {f'bottom.{output}.loss_ce' for output in ('fused', 'spa', 'cpa')}
    assert names == {'top.loss_ce', *bottom}
    sum(losses[name] for name in names).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(bottom=dict(in_channels=16)), "'bottom': CoopHead needs to know the head"),
        (dict(bottom=dict(BOTTOM, type='FCNHead')), "'bottom': type='FCNHead' is no head that"),
        (dict(bottom=dict(BOTTOM, type='DPHead')), "'bottom': type='DPHead' is no head that"),
        (dict(connections=['aspp']), r"'aspp' of top alone.*have are \['input'\]"),
        (dict(connections=['inputs']), "unknown site 'inputs'"),
    ],
)
def test_what_cannot_cooperate_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@torch.no_grad()
def test_deeplabv3plus_under_mmsegs_segmentor_is_the_single_network_of_the_paper():
    """As any user of mmseg writes the baseline."""
    backbone = dict(type='Xception', depth=41, output_stride=16, out_indices=(1, 4))
    channels = dict(in_channels=2048, low_level_in_channels=256)
    shared = dict(channels=8, num_classes=3)
    plain = dict(
        type='EncoderDecoder',
        backbone=backbone,
        decode_head=dict(type='DeepLabV3PlusHead', **channels, **shared),
        test_cfg=dict(mode='whole'),
    )
    single = dict(
        type='CrossCoopEncoderDecoder',
        backbone=dict(type='CoopBackbone', networks=dict(only=backbone)),
        decode_head=dict(type='CrossCoopASPPHead', networks=dict(only=channels), **shared),
        test_cfg=dict(mode='whole'),
    )
    plain, single = (MODELS.build(ConfigDict(cfg)).eval() for cfg in (plain, single))
    plain.load_state_dict(
        {key.replace('networks.only.', ''): value for key, value in single.state_dict().items()}
    )
    image = torch.rand(1, 3, 65, 65)
    assert torch.equal(plain(image), single(image)['only'])
    logits = [model.predict(image)[0].seg_logits.data for model in (plain, single)]
    assert torch.equal(*logits)
