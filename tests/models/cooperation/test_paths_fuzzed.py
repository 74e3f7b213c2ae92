from __future__ import annotations

import pytest
import torch

from mmseg_coop.models.cooperation import CooperativePaths

st = pytest.importorskip('hypothesis.strategies', reason='hypothesis draws the cases')
given = pytest.importorskip('hypothesis').given

NAMES = ('top', 'bottom', 'left', 'right')
FUSIONS = ('SumFusion', 'ConcatFusion', 'GatedFusion')


def features_of(data, channels, *, same_size=False):
    batch = data.draw(st.integers(2, 3))
    size = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    features = {}
    for name, count in channels.items():
        if not same_size:
            size = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
        features[name] = torch.randn(batch, count, *size, requires_grad=True)
    return features


def names_of(data, *, least=1):
    return NAMES[: data.draw(st.integers(least, 4))]


def topology_of(data, names):
    """A named topology, or any choice of senders for each network."""
    if data.draw(st.booleans()):
        return data.draw(st.sampled_from(['none', 'one_way', 'cross']))
    senders = {name: [other for other in names if other != name] for name in names}
    return {
        name: data.draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        for name, others in senders.items()
    }


@given(data=st.data())
def test_shapes_are_kept_and_gradients_finite(data):
    names = names_of(data)
    channels = {name: data.draw(st.integers(1, 6)) for name in names}
    paths = CooperativePaths(
        channels=channels,
        topology=topology_of(data, names),
        fusion=dict(type=data.draw(st.sampled_from(FUSIONS))),
        align_corners=data.draw(st.booleans()),
        norm_cfg=dict(type='GN', num_groups=1),
    )
    features = features_of(data, channels)
    merged = paths(features)
    assert list(merged) == list(names)
    assert {n: x.shape for n, x in merged.items()} == {n: x.shape for n, x in features.items()}
    sum(x.square().sum() for x in merged.values()).backward()
    for tensor in (*features.values(), *paths.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@given(data=st.data())
def test_the_gradient_follows_the_paths_and_nothing_else(data):
    """What a network holds afterwards depends on itself and its senders, and on no other."""
    names = names_of(data, least=2)
    topology = topology_of(data, names)
    paths = CooperativePaths(channels=dict.fromkeys(names, 3), topology=topology).eval()
    features = features_of(data, dict.fromkeys(names, 3), same_size=True)
    if topology == 'cross':
        senders = {name: set(names) - {name} for name in names}
    elif topology == 'one_way':
        senders = {name: set(names[:index]) for index, name in enumerate(names)}
    else:
        senders = {name: set() if topology == 'none' else set(topology[name]) for name in names}
    for receiver in names:
        gradients = torch.autograd.grad(
            paths(features)[receiver].sum(), list(features.values()), allow_unused=True
        )
        reached = {
            name for name, gradient in zip(names, gradients, strict=True) if gradient is not None
        }
        assert reached == senders[receiver] | {receiver}


@given(data=st.data())
def test_cut_paths_pass_values_but_no_gradient(data):
    names = names_of(data, least=2)
    features = features_of(data, dict.fromkeys(names, 2), same_size=True)
    whole = CooperativePaths(channels=dict.fromkeys(names, 2))(features)
    cut = CooperativePaths(channels=dict.fromkeys(names, 2), detach=True)(features)
    for name in names:
        assert torch.equal(whole[name], cut[name])
        gradients = torch.autograd.grad(cut[name].sum(), list(features.values()), allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [n == name for n in names]


@given(data=st.data())
def test_without_paths_nothing_changes(data):
    names = names_of(data)
    features = features_of(data, dict.fromkeys(names, 2))
    paths = CooperativePaths(channels=dict.fromkeys(names, 2), topology='none')
    assert not list(paths.parameters())
    assert all(torch.equal(x, features[name]) for name, x in paths(features).items())


@given(data=st.data())
def test_a_symmetric_sum_gives_all_the_same_whatever_their_order(data):
    names = names_of(data, least=2)
    features = features_of(data, dict.fromkeys(names, 2), same_size=True)
    total = sum(features.values())
    for order in (names, data.draw(st.permutations(names))):
        merged = CooperativePaths(channels=dict.fromkeys(order, 2))(
            {name: features[name] for name in order}
        )
        for name in names:
            torch.testing.assert_close(merged[name], total)


@given(data=st.data())
def test_unequal_networks_meet_through_exactly_the_convolutions_they_need(data):
    names = names_of(data, least=2)
    channels = {name: data.draw(st.integers(1, 3)) for name in names}
    paths = CooperativePaths(channels=channels)
    needed = {
        f'{sender}_to_{receiver}'
        for sender in names
        for receiver in names
        if sender != receiver and channels[sender] != channels[receiver]
    }
    assert set(paths.matchers) == needed
