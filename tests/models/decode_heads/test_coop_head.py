"""Heads of any kind that offer sites, alone under mmseg's segmentor and side by side."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from mmseg.registry import MODELS

from mmseg_coop.models import DeepLabV3PlusHead, DPAHead
from tests.conftest import labelled
from tests.models.base import NO_BATCH_STATISTICS, HeadSuite

DEEPLAB = dict(type='DeepLabV3PlusHead', in_channels=12, low_level_in_channels=5)
SEGFORMER = dict(type='SegformerHead', in_channels=[5, 10], in_index=[0, -1])
FCN = dict(type='FCNHead', in_channels=12, num_convs=1)
CONCAT = dict(in_channels=[5, 10], in_index=[0, -1], input_transform='resize_concat')
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
            name: dict(in_channels=next(number for number in read.values() if number != 5))
            for name, read in head.input_channels.items()
        }
        return head

    def shapes(self, model, size, batch):
        (pyramids,) = self.inputs(size, batch)
        levels = {name: 0 if 0 in read else -1 for name, read in model.input_channels.items()}
        return [(batch, 3, *pyramids[name][level].shape[2:]) for name, level in levels.items()]

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
    variants: ClassVar = dict(
        sum={},
        gated=dict(fusion=dict(type='GatedFusion')),
        beside_a_plain_head=dict(networks=dict(top=DEEPLAB, bottom=SEGFORMER)),
    )
    sites = ('input',)
    refusals = (
        (dict(networks=dict(top=dict(in_channels=16))), "'top': CoopHead needs to know the head"),
        (dict(networks=dict(top=dict(type='DPHead'))), "'top': type='DPHead' is not registered"),
        (dict(connections=['aspp']), r"'aspp' of top alone.*have are \['input'\]"),
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

    @torch.no_grad()
    def test_a_network_apart_leaves_the_sites_of_the_others_alone(self):
        pair = dict(top=DEEPLAB, bottom=DEEPLAB)
        alone = self.build(networks=pair).eval()
        topology = dict(top=['bottom'], bottom=['top'])
        head = self.build(networks=dict(light=SEGFORMER, **pair), topology=topology).eval()
        assert list(head.cooperation.paths) == list(alone.cooperation.paths)
        assert len(alone.cooperation.paths) == 5
        alone.load_state_dict(head.state_dict(), strict=False)
        (x,) = self.inputs(self.sizes[0])
        out = head(x)
        assert list(out) == ['light', 'top', 'bottom']
        assert torch.equal(out['light'], head.networks['light'](x['light']))
        expected = alone({name: x[name] for name in pair})
        assert all(torch.equal(out[name], expected[name]) for name in pair)

    def test_losses_carry_the_names_of_network_and_output(self):
        losses = self.build().loss(*self.inputs(self.sizes[0]), labelled(2, (18, 14)))
        bottom = {f'bottom.{output}.loss_ce' for output in ('fused', 'spa', 'cpa')}
        assert {name for name in losses if 'loss' in name} == {'top.loss_ce', *bottom}


class TestPlainHeads(CoopHeadSuite):
    """Heads of mmseg."""

    type = 'CoopHead'
    arguments: ClassVar = dict(
        CoopHeadSuite.arguments,
        networks=dict(
            top=dict(type='UPerHead', in_channels=[5, 12], in_index=[0, 1], pool_scales=(1, 2)),
            bottom=SEGFORMER,
        ),
    )
    variants: ClassVar = dict(
        sum={},
        gated=dict(fusion=dict(type='GatedFusion'), topology=dict(bottom=['top'])),
        concat=dict(networks=dict(top=SEGFORMER, bottom=dict(FCN, **CONCAT))),
        deepest=dict(networks=dict(top=SEGFORMER, bottom=FCN)),
    )
    sites = ('pyramid',)
    refusals = (
        *(
            (dict(networks=dict(top=dict(FCN, type=name))), rf"'top': type='{name}' {reason}")
            for name, reason in dict(
                Mask2FormerHead='has other outputs than one map of logits',
                MaskFormerHead='has other outputs',
                IterativeDecodeHead='has outputs of its own',  # K-Net
                DAHead=r'has outputs of its own \(in loss_by_feat, predict\)',
                SideAdapterCLIPHead='has outputs of its own',
                OCRHead='refines the output of another head',
                PointHead='refines the output of another head',
                ResNet='has other outputs',
            ).items()
        ),
        (dict(connections=['input']), r"unknown site 'input'; .*\['pyramid'\]"),
        (dict(networks=dict(top=SEGFORMER, bottom=dict(FCN, num_classes=4))), 'num_classes is'),
        (
            dict(networks=dict(top=dict(type='UPerHead', in_channels=12))),
            r"'top': UPerHead refuses in_channels=12, in_index=-1 .*\(an assertion failed\).* list",
        ),
    )

    @torch.no_grad()
    def test_every_level_is_exchanged_and_the_heads_know_nothing_of_it(self):
        head = self.build().eval()
        (x,) = self.inputs(self.sizes[0])
        paths, out = head.cooperation.paths['pyramid'], head(x)
        assert len(paths) == 2
        merged = [
            path({name: levels[index] for name, levels in x.items()})
            for index, path in enumerate(paths)
        ]
        for name, network in head.networks.items():
            assert torch.equal(out[name], network([level[name] for level in merged]))
        assert not any('backbone' in name for name, _ in head.named_parameters())

    @torch.no_grad()
    def test_a_head_of_one_level_meets_the_deepest_of_the_others(self):
        head = self.build('deepest').eval()
        (x,) = self.inputs(self.sizes[0])
        (path,) = head.cooperation.paths['pyramid']
        merged = path({name: levels[-1] for name, levels in x.items()})
        for name, network in head.networks.items():
            assert torch.equal(head(x)[name], network([x[name][0], merged[name]]))


#: Plain heads of mmseg, and what they cannot do without.
PLAIN = dict(
    ANNHead=dict(project_channels=4, key_pool_scales=(1, 2)),
    APCHead=dict(pool_scales=(1, 2)),
    ASPPHead=dict(dilations=(1, 2)),
    DMHead=dict(filter_sizes=(1, 3)),
    DepthwiseSeparableASPPHead=dict(c1_in_channels=5, c1_channels=4, dilations=(1, 2)),
    DepthwiseSeparableFCNHead={},
    EMAHead=dict(ema_channels=8, num_bases=4, num_stages=2),
    FCNHead={},
    FPNHead=dict(feature_strides=[4, 8]),
    GCHead={},
    ISAHead=dict(isa_channels=4, down_factor=(2, 2)),
    LightHamHead=dict(ham_channels=8, ham_kwargs=dict(MD_R=4)),
    NLHead={},
    PSPHead=dict(pool_scales=(1, 2)),
    SegformerHead={},
    UPerHead=dict(pool_scales=(1, 2)),
)
SEVERAL = ('ANNHead', 'FPNHead', 'LightHamHead', 'SegformerHead', 'UPerHead')


@pytest.mark.parametrize('name', PLAIN)
def test_plain_heads_of_mmseg_receive_and_send(name):
    levels = dict(in_index=[0, 1]) if name in SEVERAL else {}
    head = MODELS.build(
        dict(
            type='CoopHead',
            networks=dict(top=dict(type=name, **levels, **PLAIN[name]), bottom=FCN),
            pyramid_channels=dict(top=(5, 12), bottom=(6, 12)),
            norm_cfg=dict(type='GN', num_groups=2),
            channels=8,
            num_classes=3,
        )
    )
    pyramids = {
        network: [torch.rand(2, c, s, s).requires_grad_() for c, s in ((low, 16), (12, 8))]
        for network, low in (('top', 5), ('bottom', 6))
    }
    for own, other in (('top', 'bottom'), ('bottom', 'top')):
        out = head(pyramids)[own]
        assert out.shape[:2] == (2, 3)
        (gradient,) = torch.autograd.grad(out.square().sum(), [pyramids[other][1]])
        assert gradient.any()
    losses = head.loss(pyramids, labelled(2, (18, 14)), train_cfg={})
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


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
    refusals = ((dict(channels=0), "network 'top': channels=0 is not a positive integer"),)


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
