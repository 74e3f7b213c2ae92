from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from mmseg_coop.models import CooperativePaths
from mmseg_coop.models.cooperation import resolve_topology
from tests.models.base import NO_BATCH_STATISTICS, ModelSuite

NAMES = ('a', 'b', 'c', 'd')
#: Topologies of four networks, and who sends to whom in each.
TOPOLOGIES = [
    ('none', {}),
    ('one_way', dict(b=('a',), c=('a', 'b'), d=('a', 'b', 'c'))),
    ('cross', {name: tuple(n for n in NAMES if n != name) for name in NAMES}),
    (dict(a=['c'], b=[], d=['c', 'a']), dict(a=('c',), d=('c', 'a'))),
]


def maps():
    return {name: torch.randn(2, 3, 5, 7, requires_grad=True) for name in NAMES}


def equal_paths(**arguments):
    return CooperativePaths(channels=dict.fromkeys(NAMES, 3), **arguments)


class TestCooperativePaths(ModelSuite):
    arguments: ClassVar = dict(channels=dict(a=4, b=6, c=4), norm_cfg=NO_BATCH_STATISTICS)
    variants: ClassVar = dict(
        sum={},
        concat=dict(fusion=dict(type='ConcatFusion'), topology='one_way', align_corners=True),
        gated=dict(fusion=dict(type='GatedFusion')),
        chosen=dict(topology=dict(b=['c'], a=['b', 'c'])),
        alone=dict(channels=dict(a=4), fusion=dict(type='GatedFusion')),
    )
    refusals = (
        (dict(topology='both'), r"topology='both' is unknown.*none.*one_way.*cross"),
        (dict(topology={'a': ['left']}), r"unknown network 'left'.*a.*b"),
        (dict(topology={'a': ['a']}), r"'a' send to itself"),
        (dict(fusion=dict(type='MaxFusion')), r"'MaxFusion' is unknown.*SumFusion"),
        (dict(fusion=dict(channels=4)), 'fusion=.* has no type'),
    )

    def build(self, variant=None, **changed):
        arguments = {**self.arguments, **(self.variants[variant] if variant else {}), **changed}
        self.channels = arguments['channels']
        return CooperativePaths(**arguments)

    def sizes_of(self, size):
        """One size a network."""
        return dict(a=size, b=tuple(-(-side // 2) for side in size), c=size[::-1])

    def inputs(self, size, batch=2):
        sizes = self.sizes_of(size)
        return ({n: torch.randn(batch, c, *sizes[n]) for n, c in self.channels.items()},)

    def shapes(self, model, size, batch):
        sizes = self.sizes_of(size)
        return [(batch, channels, *sizes[name]) for name, channels in self.channels.items()]


@pytest.mark.parametrize(('topology', 'senders_of'), TOPOLOGIES)
def test_the_sum_and_the_gradient_follow_the_paths_and_nothing_else(topology, senders_of):
    """What a network holds afterwards depends on itself and its senders, and on no other."""
    assert resolve_topology(topology, NAMES) == senders_of
    features = maps()
    merged = equal_paths(topology=topology)(features)
    for name in NAMES:
        sources = {name, *senders_of.get(name, ())}
        expected = sum(features[source] for source in sources)
        torch.testing.assert_close(merged[name], expected)
        assert (merged[name] is features[name]) == (name not in senders_of)
        gradients = torch.autograd.grad(
            merged[name].sum(), [*features.values()], allow_unused=True, retain_graph=True
        )
        assert {n for n, g in zip(NAMES, gradients, strict=True) if g is not None} == sources


def test_cut_paths_pass_values_but_no_gradient():
    features = maps()
    whole, cut = equal_paths()(features), equal_paths(detach=True)(features)
    for name in NAMES:
        assert torch.equal(whole[name], cut[name])
        gradients = torch.autograd.grad(cut[name].sum(), [*features.values()], allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [n == name for n in NAMES]


def test_channels_are_matched_only_where_they_differ():
    assert not list(equal_paths().parameters())
    module = CooperativePaths(channels=dict(a=4, b=4, c=6))
    assert set(module.matchers) == {'c_to_a', 'c_to_b', 'a_to_c', 'b_to_c'}
    module = CooperativePaths(channels=dict(a=4, b=4, c=6), topology=dict(a=['b', 'c']))
    assert list(module.matchers) == ['c_to_a']


def test_a_received_map_is_the_projected_and_resized_one():
    module = CooperativePaths(channels=dict(top=3, bottom=5)).eval()
    top, bottom = torch.rand(1, 3, 8, 8), torch.rand(1, 5, 4, 4)
    matcher = module.matchers['bottom_to_top']
    sent = torch.einsum('oi,nihw->nohw', matcher.conv.weight[:, :, 0, 0], bottom)
    sent = sent / (1 + matcher.bn.eps) ** 0.5  # the statistics are 0 and 1
    expected = top + F.interpolate(sent, size=(8, 8), mode='bilinear')
    torch.testing.assert_close(module(dict(top=top, bottom=bottom))['top'], expected)


def test_concat_fusion_equals_its_formula():
    features = maps()
    module = equal_paths(fusion=dict(type='ConcatFusion')).eval()
    conv = module.fusions['a'].reduce
    x = torch.cat([*features.values()], dim=1)
    expected = torch.einsum('oi,nihw->nohw', conv.conv.weight[:, :, 0, 0], x)
    expected = expected / (1 + conv.bn.eps) ** 0.5
    torch.testing.assert_close(module(features)['a'], expected.relu())


def test_gated_fusion_equals_its_formula():
    features = maps()
    module = equal_paths(fusion=dict(type='GatedFusion'))
    expected = features['b']
    for gate, name in zip(module.fusions['b'].gates, 'acd', strict=True):
        x = torch.cat([features['b'], features[name]], dim=1)
        g = torch.einsum('oi,nihw->nohw', gate.weight[:, :, 0, 0], x) + gate.bias.view(1, -1, 1, 1)
        expected = expected + features[name] / (1 + torch.exp(-g))
    torch.testing.assert_close(module(features)['b'], expected)
