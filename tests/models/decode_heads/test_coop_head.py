"""Heads of any kind that offer sites, alone under mmseg's segmentor and side by side."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from mmengine.config import ConfigDict
from mmseg.registry import MODELS

from mmseg_coop.models import DeepLabV3PlusHead, DPAHead
from tests.models.base import NO_BATCH_STATISTICS, HeadSuite, labelled

DEEPLAB = dict(type='DeepLabV3PlusHead', in_channels=12, low_level_in_channels=5)
DPA = dict(type='DPAHead', in_channels=10, key_sizes=(1, 3), value_sizes=(1, 3))


class CoopHeadSuite(HeadSuite):
    """What holds for several networks, whatever their heads are."""

    arguments: ClassVar = dict(channels=8, num_classes=3, norm_cfg=NO_BATCH_STATISTICS)
    sizes = ((6, 4), (5, 7), (1, 1))
    #: Sites of the head.
    sites = ()

    def inputs(self, size, batch=2):
        """A pyramid a network, of unequal sizes: the low level, then the backbone's output."""
        pyramids = {}
        for stretch, (name, own) in enumerate(self.networks.items()):
            height, width = size[0] + stretch, size[1]
            low = torch.randn(batch, 5, 2 * height, 2 * width)
            pyramids[name] = [low, torch.randn(batch, own['in_channels'], height, width)]
        return (pyramids,)

    def build(self, variant=None, **changed):
        head = super().build(variant, **changed)
        self.networks = {
            name: dict(in_channels=network.in_channels) for name, network in head.networks.items()
        }
        return head

    def shapes(self, model, size, batch):
        (pyramids,) = self.inputs(size, batch)
        return [
            (batch, 3, *pyramids[name][isinstance(head, DPAHead)].shape[2:])
            for name, head in model.networks.items()
        ]

    @pytest.mark.parametrize('apart', [dict(topology='none'), dict(connections=[])], ids=str)
    @torch.no_grad()
    def test_without_an_exchange_networks_are_the_heads_alone(self, variant, apart):
        head = self.build(variant, **apart).eval()
        (x,) = self.inputs(self.sizes[0])
        together = head(x)
        assert not list(head.cooperation.parameters())
        assert all(torch.equal(net(x[name]), together[name]) for name, net in head.networks.items())

    @torch.no_grad()
    def test_one_way_changes_all_but_the_first_network(self):
        head = self.build(topology='one_way').eval()
        (x,) = self.inputs(self.sizes[0])
        together = head(x)
        same = [torch.equal(net(x[name]), together[name]) for name, net in head.networks.items()]
        assert same == [True] + [False] * (len(same) - 1)

    def test_each_site_alone_connects_all_networks(self, site):
        head = self.build(connections=[site]).eval()
        assert list(head.cooperation.paths) == [site]
        (x,) = self.inputs(self.sizes[0])
        x = {name: [level.requires_grad_() for level in levels] for name, levels in x.items()}
        together = head(x)
        for name, net in head.networks.items():
            assert not torch.allclose(net(x[name]), together[name])
            for levels in x.values():
                gradients = torch.autograd.grad(
                    together[name].sum(), levels, retain_graph=True, allow_unused=True
                )
                assert any(gradient is not None and gradient.any() for gradient in gradients)

    def test_pyramids_that_do_not_fit_are_named_with_their_network(self):
        head = self.build()
        (x,) = self.inputs(self.sizes[0])
        wrong = {**x, 'bottom': [*x['bottom'][:-1], x['bottom'][-1][:, :9]]}
        with pytest.raises(ValueError, match=r"of network 'bottom' was built for 10 channels .* 9"):
            head(wrong)
        with pytest.raises(ValueError, match=r"backbone has the networks \['top'\]"):
            head(dict(top=x['top']))

    def test_no_other_sites_are_connected(self):
        assert tuple(self.build().cooperation.paths) == self.sites

    @torch.no_grad()
    def test_the_order_of_naming_is_the_order_of_the_results_only(self):
        """In a symmetric topology no network is special."""
        head = self.build().eval()
        networks = self.arguments['networks']
        other = self.build(networks=dict(reversed(networks.items()))).eval()
        other.load_state_dict(head.state_dict())
        (x,) = self.inputs(self.sizes[0])
        expected, found = head(x), other(x)
        assert list(found) == [*reversed(networks)]
        for name in networks:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


class TestCoopHead(CoopHeadSuite):
    type = 'CoopHead'
    arguments: ClassVar = dict(CoopHeadSuite.arguments, networks=dict(top=DEEPLAB, bottom=DPA))
    variants: ClassVar = dict(sum={}, gated=dict(fusion=dict(type='GatedFusion')))
    sites = ('input',)
    refusals = (
        (dict(networks=dict(top=dict(in_channels=16))), "'top': CoopHead needs to know the head"),
        (dict(networks=dict(top=dict(DPA, type='FCNHead'))), "'FCNHead' is no head that"),
        (dict(networks=dict(top=dict(DPA, type='DPHead'))), "'top': type='DPHead' is no head that"),
        (dict(connections=['aspp']), r"'aspp' of top alone.*have are \['input'\]"),
        (dict(connections=['inputs']), "unknown site 'inputs'"),
        (dict(num_classes=-1), 'num_classes=-1 is not a positive integer'),
    )

    @torch.no_grad()
    def test_heads_of_two_types_exchange_at_the_site_that_both_have(self):
        head = self.build().eval()
        (x,) = self.inputs(self.sizes[0])
        assert [*map(type, head.networks.values())] == [DeepLabV3PlusHead, DPAHead]
        merged = head.cooperation.paths['input'][0](dict(top=x['top'][-1], bottom=x['bottom'][-1]))
        out = head(x)
        for name, network in head.networks.items():
            assert torch.equal(out[name], network([x[name][0], merged[name]]))

    def test_losses_carry_the_names_of_network_and_output(self):
        losses = self.build().loss(*self.inputs(self.sizes[0]), labelled(2, (18, 14)))
        bottom = {f'bottom.{output}.loss_ce' for output in ('fused', 'spa', 'cpa')}
        assert {name for name in losses if 'loss' in name} == {'top.loss_ce', *bottom}


class TestCrossCoopASPPHead(CoopHeadSuite):
    type = 'CrossCoopASPPHead'
    arguments: ClassVar = dict(
        CoopHeadSuite.arguments,
        networks=dict(
            top=dict(in_channels=12, low_level_in_channels=5),
            bottom=dict(in_channels=10, low_level_in_channels=5, low_level_channels=6),
            third=dict(in_channels=12, low_level_in_channels=5),
        ),
        dilations=(1, 2, 3),
    )
    variants: ClassVar = dict(
        cross={},
        one_way=dict(topology='one_way', fusion=dict(type='ConcatFusion'), separable=True),
        gated=dict(fusion=dict(type='GatedFusion'), connections=['aspp'], num_decoder_convs=3),
        detached=dict(detach=True, align_corners=True, dilations=(4,)),
        chosen=dict(topology=dict(top=['third']), dropout_ratio=0),
    )
    sites = ('input', 'aspp', 'aspp_output', 'low_level', 'decoder')
    refusals = (
        (dict(channels=0), "network 'top': channels=0 is not a positive integer"),
        (dict(fusion=dict(channels=4)), 'fusion=.* has no type'),
    )


class TestCrossCoopDPAHead(CoopHeadSuite):
    type = 'CrossCoopDPAHead'
    arguments: ClassVar = dict(
        CoopHeadSuite.arguments,
        networks=dict(top=dict(in_channels=12), bottom=dict(in_channels=10)),
        key_sizes=(1, 3),
        value_sizes=(1, 3),
    )
    variants: ClassVar = dict(
        cross={},
        one_way=dict(topology='one_way', branch_fusion='sum', convolutions='after'),
        gated=dict(fusion=dict(type='GatedFusion'), convolutions='none', maximum='column'),
        projected=dict(qkv='conv', channel_qkv='conv', fusion=dict(type='ConcatFusion')),
    )
    sites = ('input', 'attention_input', 'attention', 'attention_output')
    refusals = (
        (dict(channels=0), "network 'top': channels=0 is not a positive integer"),
        (dict(networks=dict(left=dict(in_channels=0))), "network 'left': in_channels=0"),
        (dict(convolutions='none', connections=['attention_output']), 'attention_output'),
    )

    def test_without_convolutions_there_are_no_sites_behind_them(self):
        assert set(self.build(convolutions='none').cooperation.paths) == {'input', 'attention'}


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
