from __future__ import annotations

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmseg_coop.models import CrossCoopASPPHead, CrossCoopDPAHead, DPAHead

st = pytest.importorskip('hypothesis.strategies', reason='hypothesis draws the cases')
given = pytest.importorskip('hypothesis').given

NAMES = ('top', 'bottom', 'left', 'right')
FUSIONS = ('SumFusion', 'ConcatFusion', 'GatedFusion')
SITES = {
    CrossCoopASPPHead: ('input', 'aspp', 'aspp_output', 'low_level', 'decoder'),
    CrossCoopDPAHead: ('input', 'attention_input', 'attention', 'attention_output'),
}
#: Sites that CrossCoopDPAHead lacks without convolutions.
MISSING = dict(both=(), after=('attention_input',), none=('attention_input', 'attention_output'))
NO_BATCH_STATISTICS = dict(type='GN', num_groups=1)


def number(data):
    # One channel and one pixel are refused by torch's group norm.
    return data.draw(st.integers(2, 6))


def network_of(data, kind):
    """What is a network's own in a head of a kind."""
    own = dict(in_channels=number(data))
    if kind is CrossCoopASPPHead:
        own.update(low_level_in_channels=number(data), low_level_channels=number(data))
    return own


def shared_of(data, kind):
    """What all networks of a head share."""
    shared = dict(channels=number(data), num_classes=data.draw(st.integers(1, 6)), dropout_ratio=0)
    if kind is CrossCoopASPPHead:
        shared.update(
            dilations=data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)),
            num_decoder_convs=data.draw(st.integers(1, 3)),
            separable=data.draw(st.booleans()),
        )
    else:
        shared.update(
            convolutions=data.draw(st.sampled_from(['both', 'after', 'none'])),
            branch_fusion=data.draw(st.sampled_from(['concat', 'sum'])),
            qkv=data.draw(st.sampled_from(['identity', 'conv'])),
            channel_qkv=data.draw(st.sampled_from(['identity', 'conv'])),
            maximum=data.draw(st.sampled_from(['row', 'column'])),
            key_sizes=(1, 3),
            value_sizes=(1, 3),
        )
    return shared


def connections_of(data, kind, shared):
    """Some of the sites of a head."""
    missing = MISSING[shared.get('convolutions', 'both')]
    sites = [site for site in SITES[kind] if site not in missing]
    return data.draw(st.lists(st.sampled_from(sites), unique=True))


def pyramid_of(data, own, batch):
    """Feature pyramid of a network: low-level map, then the backbone's output, of any sizes."""
    size = [data.draw(st.integers(1, 9)) for _ in range(4)]
    return [
        torch.randn(batch, own.get('low_level_in_channels', 2), *size[:2], requires_grad=True),
        torch.randn(batch, own['in_channels'], *size[2:], requires_grad=True),
    ]


def any_head(data, *, kinds=tuple(SITES), **fixed):
    """A head of one to four networks, and a batch for it."""
    kind = data.draw(st.sampled_from(kinds))
    networks = {name: network_of(data, kind) for name in NAMES[: data.draw(st.integers(1, 4))]}
    shared = shared_of(data, kind)
    arguments = dict(
        networks=networks,
        topology=data.draw(st.sampled_from(['none', 'one_way', 'cross'])),
        connections=connections_of(data, kind, shared),
        fusion=dict(type=data.draw(st.sampled_from(FUSIONS))),
        norm_cfg=NO_BATCH_STATISTICS,
        **shared,
    )
    arguments.update(fixed)
    head = kind(**arguments)
    batch = data.draw(st.integers(1, 3))
    return head, {name: pyramid_of(data, own, batch) for name, own in networks.items()}


def output_size(head, pyramid):
    return pyramid[0 if isinstance(head, CrossCoopASPPHead) else 1].shape[2:]


@given(data=st.data())
def test_every_network_has_logits_at_the_stride_of_its_decoder(data):
    head, inputs = any_head(data)
    logits = head.eval()(inputs)
    assert list(logits) == list(inputs)
    for name, x in logits.items():
        batch = inputs[name][0].shape[0]
        assert x.shape == (batch, head.num_classes, *output_size(head, inputs[name]))
        assert x.isfinite().all()


@given(data=st.data())
def test_every_parameter_gets_a_finite_gradient(data):
    head, inputs = any_head(data)
    samples = []
    for _ in range(inputs['top'][0].shape[0]):
        label = torch.randint(0, head.num_classes, (1, 11, 13))
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=label)))
    losses = head.loss(inputs, samples)
    assert {key.split('.')[0] for key in losses} == set(inputs)
    sum(value.sum() for key, value in losses.items() if 'loss' in key).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@given(data=st.data())
def test_images_do_not_see_each_other(data):
    head, inputs = any_head(data, norm_cfg=dict(type='BN'))
    head.eval()
    together = head(inputs)
    for index in range(inputs['top'][0].shape[0]):
        alone = head({n: [x[index : index + 1] for x in levels] for n, levels in inputs.items()})
        for name, logits in alone.items():
            torch.testing.assert_close(logits[0], together[name][index], rtol=1e-4, atol=1e-5)


@given(data=st.data())
def test_without_an_exchange_networks_are_single_networks_bit_for_bit(data):
    fixed = data.draw(st.sampled_from([dict(topology='none'), dict(connections=[])]))
    head, inputs = any_head(data, **fixed)
    head.eval()
    together = head(inputs)
    assert not list(head.cooperation.parameters())
    for name, single in head.networks.items():
        assert torch.equal(single(inputs[name]), together[name])


@given(data=st.data())
def test_the_first_network_of_one_way_is_a_single_network(data):
    head, inputs = any_head(data, topology='one_way')
    head.eval()
    assert torch.equal(head.networks['top'](inputs['top']), head(inputs)['top'])


@given(data=st.data())
def test_the_order_of_naming_is_the_order_of_the_results_only(data):
    """In a symmetric topology no network is special."""
    kind = data.draw(st.sampled_from(list(SITES)))
    names = NAMES[: data.draw(st.integers(2, 4))]
    networks = {name: network_of(data, kind) for name in names}
    shared = dict(topology='cross', norm_cfg=NO_BATCH_STATISTICS, **shared_of(data, kind))
    head = kind(networks=networks, **shared).eval()
    order = data.draw(st.permutations(names))
    other = kind(networks={name: networks[name] for name in order}, **shared).eval()
    other.load_state_dict(head.state_dict())
    inputs = {name: pyramid_of(data, networks[name], 2) for name in names}
    expected, found = head(inputs), other({name: inputs[name] for name in order})
    assert list(found) == list(order)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


@given(data=st.data())
def test_an_exchange_reaches_the_other_network_exactly_where_it_is_connected(data):
    """A change in one network's input arrives at another network if any site is connected."""
    kind = data.draw(st.sampled_from(list(SITES)))
    own = network_of(data, kind)
    shared = dict(shared_of(data, kind), channels=8)
    connections = connections_of(data, kind, shared)
    head = kind(
        networks=dict(top=own, bottom=own),
        connections=connections,
        norm_cfg=NO_BATCH_STATISTICS,
        **shared,
    ).eval()
    inputs = {name: pyramid_of(data, own, 1) for name in ('top', 'bottom')}
    levels = torch.autograd.grad(head(inputs)['bottom'].sum(), inputs['top'], allow_unused=True)
    assert any(gradient is not None for gradient in levels) == bool(connections)


@given(data=st.data())
def test_a_head_alone_takes_any_size(data):
    own = network_of(data, CrossCoopDPAHead)
    head = DPAHead(**own, **shared_of(data, CrossCoopDPAHead)).eval()
    inputs = pyramid_of(data, own, 2)
    assert head(inputs).shape == (2, head.num_classes, *inputs[1].shape[2:])
