from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg_coop.models import CooperativePaths
from mmseg_coop.models.cooperation import resolve_topology


@pytest.fixture
def features():
    return {name: torch.rand(2, 4, 5, 7) for name in ('top', 'bottom')}


def paths(**kwargs):
    return CooperativePaths(**{'channels': dict(top=4, bottom=4), **kwargs})


def test_none_leaves_everything_as_it_was(features):
    merged = paths(topology='none')(features)
    assert all(merged[name] is features[name] for name in features)


def test_cross_sum_gives_both_the_sum_of_what_they_held_before(features):
    merged = paths(topology='cross')(features)
    expected = features['top'] + features['bottom']
    torch.testing.assert_close(merged['top'], expected, rtol=0, atol=0)
    torch.testing.assert_close(merged['bottom'], expected, rtol=0, atol=0)


def test_one_way_sends_down_only(features):
    merged = paths(topology='one_way')(features)
    assert merged['top'] is features['top']
    torch.testing.assert_close(merged['bottom'], features['bottom'] + features['top'])


def test_three_networks():
    names = ['a', 'b', 'c']
    assert resolve_topology('one_way', names) == {'b': ('a',), 'c': ('a', 'b')}
    assert resolve_topology('cross', names) == {'a': ('b', 'c'), 'b': ('a', 'c'), 'c': ('a', 'b')}
    assert resolve_topology({'a': ['c'], 'b': []}, names) == {'a': ('c',)}
    features = {name: torch.rand(1, 2, 3, 3) for name in names}
    merged = CooperativePaths(channels=dict.fromkeys(names, 2), topology='cross')(features)
    for name in names:
        torch.testing.assert_close(merged[name], sum(features.values()))


def test_sum_needs_no_parameters_where_shapes_agree():
    assert sum(p.numel() for p in paths().parameters()) == 0


def test_channels_and_strides_are_matched_only_where_they_differ():
    module = CooperativePaths(channels=dict(top=4, bottom=6))
    assert sorted(module.matchers) == ['bottom_to_top', 'top_to_bottom']
    same = CooperativePaths(channels=dict(a=4, b=4, c=6), topology=dict(a=['b', 'c']))
    assert list(same.matchers) == ['c_to_a']
    merged = module(dict(top=torch.rand(2, 4, 9, 11), bottom=torch.rand(2, 6, 5, 6)))
    assert merged['top'].shape == (2, 4, 9, 11)
    assert merged['bottom'].shape == (2, 6, 5, 6)


def test_a_matched_map_is_the_projected_and_resized_one():
    module = CooperativePaths(channels=dict(top=3, bottom=3)).eval()
    top, bottom = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4)
    expected = top + nn.functional.interpolate(bottom, size=(8, 8), mode='bilinear')
    torch.testing.assert_close(module(dict(top=top, bottom=bottom))['top'], expected)


def test_concat_fusion_equals_its_formula(features):
    module = paths(fusion=dict(type='ConcatFusion')).eval()
    conv = module.fusions['top'].reduce
    x = torch.cat([features['top'], features['bottom']], dim=1)
    expected = torch.einsum('oi,nihw->nohw', conv.conv.weight[:, :, 0, 0], x)
    expected = expected / (1 + conv.bn.eps) ** 0.5  # the statistics are 0 and 1
    torch.testing.assert_close(module(features)['top'], expected.relu())


def test_gated_fusion_equals_its_formula(features):
    module = paths(fusion=dict(type='GatedFusion'))
    gate = module.fusions['bottom'].gates[0]
    x = torch.cat([features['bottom'], features['top']], dim=1)
    g = torch.einsum('oi,nihw->nohw', gate.weight[:, :, 0, 0], x) + gate.bias.view(1, -1, 1, 1)
    expected = features['bottom'] + features['top'] / (1 + torch.exp(-g))
    torch.testing.assert_close(module(features)['bottom'], expected)


@pytest.mark.parametrize('detach', [False, True])
def test_gradient_through_a_path(features, detach):
    features = {name: x.requires_grad_() for name, x in features.items()}
    paths(topology='cross', detach=detach)(features)['bottom'].sum().backward()
    assert (features['top'].grad is None) == detach
    assert features['bottom'].grad is not None


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(topology='both'), r"topology='both' is unknown.*none.*one_way.*cross"),
        (dict(topology={'top': ['left']}), r"unknown network 'left'.*top.*bottom"),
        (dict(topology={'top': ['top']}), r"'top' send to itself"),
        (dict(fusion=dict(type='MaxFusion')), r"'MaxFusion' is unknown.*SumFusion"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        paths(**kwargs)
