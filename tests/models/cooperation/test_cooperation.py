from __future__ import annotations

import pytest
import torch

from mmseg_coop.models import Cooperation


def network(x, order):
    """Two layers at site a and one at site b, each of which adds 1."""
    for site in ('a', 'a', 'b'):
        order.append(site)
        x = yield site, x + 1
    return x


CHANNELS = dict(a=(1, 1), b=(1,))


def run(connections, topology='cross'):
    order = []
    cooperation = Cooperation(
        site_channels=dict(top=CHANNELS, bottom=CHANNELS),
        connections=connections,
        paths=dict(topology=topology),
    )
    results = cooperation(
        dict(
            top=network(torch.zeros(1, 1, 1, 1), order),
            bottom=network(torch.full((1, 1, 1, 1), 10.0), order),
        )
    )
    return results['top'].item(), results['bottom'].item(), order


def test_networks_exchange_after_each_layer_and_run_in_step():
    # after the first layer 1 and 11 -> 12 both, second 13 + 13 -> 26, third 27 + 27 -> 54
    assert run(None) == (54, 54, ['a', 'a', 'a', 'a', 'b', 'b'])


def test_only_the_chosen_sites_exchange():
    assert run(['b'])[:2] == (16, 16)
    assert run(['a'])[:2] == (27, 27)
    assert run([])[:2] == (3, 13)


def test_topology_reaches_every_site():
    # bottom: 11 + 1 = 12, 13 + 2 = 15, 16 + 3 = 19
    assert run(None, 'one_way')[:2] == (3, 19)


def test_unknown_site_is_named():
    with pytest.raises(ValueError, match=r"unknown site 'c'.*'a', 'b'"):
        run(['c'])


def test_networks_of_different_depth_are_refused():
    with pytest.raises(ValueError, match='same number of layers'):
        Cooperation(site_channels=dict(top=CHANNELS, bottom=dict(a=(1,), b=(1,))))


def test_networks_with_their_sites_in_another_order_are_refused():
    with pytest.raises(ValueError, match='same order'):
        Cooperation(site_channels=dict(top=CHANNELS, bottom=dict(reversed(CHANNELS.items()))))


def test_networks_without_a_site_in_common_are_refused_unless_they_are_meant_to_work_alone():
    apart = dict(top=dict(a=(1,)), bottom=dict(b=(1, 1)))
    message = r"no site in common: top has \['a'\]; bottom has \['b'\]"
    with pytest.raises(ValueError, match=message):
        Cooperation(site_channels=apart)
    assert not Cooperation(site_channels=apart, paths=dict(topology='none')).paths
    assert not Cooperation(site_channels=apart, connections=[]).paths


def walk(*sites):
    """A network that yields at these sites, whatever it has declared."""
    x = torch.zeros(1, 1, 1, 1)
    for site in sites:
        x = yield site, x
    return x


@pytest.mark.parametrize(
    ('top', 'bottom', 'message'),
    [
        ('aab', 'aba', "top at 'a', bottom at 'b'"),
        ('aab', 'aa', "top at 'b', bottom at its end"),
        ('aa', 'aab', "top at its end, bottom at 'b'"),
        ('aaab', 'aaab', "'a' for the 3. time, but site_channels has 2 layers"),
        ('aabc', 'aabc', "'c' for the 1. time, but site_channels has 0 layers"),
        ('ab', 'ab', r"\{'a': 1, 'b': 1\} \(times\), but site_channels has \{'a': 2, 'b': 1\}"),
    ],
)
@pytest.mark.parametrize('connections', [None, []])
def test_networks_out_of_step_are_refused(top, bottom, message, connections):
    cooperation = Cooperation(
        site_channels=dict(top=CHANNELS, bottom=CHANNELS), connections=connections
    )
    with pytest.raises(RuntimeError, match=message):
        cooperation(dict(top=walk(*top), bottom=walk(*bottom)))
