from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmseg_coop.models import ChannelPoolAttention, PoolUnit, SpatialPoolAttention

st = pytest.importorskip('hypothesis.strategies', reason='hypothesis draws the cases')
given = pytest.importorskip('hypothesis').given

#: Pool sizes of keys and values whose squares have the same sum.
PYRAMIDS = (
    ((1,), (1,)),
    ((2, 3), (2, 3)),
    ((1, 7), (5, 5)),
    ((1, 1, 4), (3, 3)),
    ((1, 4, 8, 10, 12), (1, 5, 7, 9, 13)),
)
SIDES = st.integers(1, 14)


def random_map(data, channels):
    shape = (data.draw(st.integers(1, 3)), channels, data.draw(SIDES), data.draw(SIDES))
    return torch.randn(shape, dtype=torch.float64)


def pooled(x, sizes, pooling):
    pool = dict(avg=F.adaptive_avg_pool2d, max=F.adaptive_max_pool2d)[pooling]
    return torch.cat([pool(x, size).flatten(2) for size in sizes], dim=2)


def spatial_attention_pixel_by_pixel(module, x, keys, values, query):
    """Equations 8 and 9 as they are written, a loop over pixels."""
    out = torch.empty_like(x)
    for n in range(x.shape[0]):
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                q = query[n, :, row, column]
                energies = torch.stack(
                    [module.energy_scale * (keys[n, :, i] * q).sum() for i in range(keys.shape[2])]
                )
                weights = energies.exp() / energies.exp().sum()
                attended = sum(w * values[n, :, i] for i, w in enumerate(weights))
                out[n, :, row, column] = module.scale * attended + x[n, :, row, column]
    return out


@given(data=st.data())
def test_pool_unit_is_adaptive_pooling_at_every_size(data):
    x = random_map(data, data.draw(st.integers(1, 5)))
    sizes = data.draw(st.lists(st.integers(1, 15), min_size=1, max_size=5))
    pooling = data.draw(st.sampled_from(['avg', 'max']))
    if data.draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(PoolUnit(sizes=sizes, pooling=pooling)(x), pooled(x, sizes, pooling))


@given(data=st.data())
def test_spatial_attention_is_the_equation(data):
    channels = data.draw(st.integers(1, 9))
    key_sizes, value_sizes = data.draw(st.sampled_from(PYRAMIDS[:4]))
    qkv = data.draw(st.sampled_from(['identity', 'conv']))
    pooling = data.draw(st.sampled_from(['avg', 'max']))
    module = SpatialPoolAttention(
        in_channels=channels,
        key_sizes=key_sizes,
        value_sizes=value_sizes,
        qkv=qkv,
        pooling=pooling,
        scaled=data.draw(st.booleans()),
    ).double()
    torch.nn.init.constant_(module.scale, 0.7)
    x = torch.randn(
        1, channels, data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    ).double()
    with torch.no_grad():
        query = x if module.query is None else module.query(x)
        keys = pooled(x if module.key is None else module.key(x), key_sizes, pooling)
        values = pooled(x if module.value is None else module.value(x), value_sizes, pooling)
        expected = spatial_attention_pixel_by_pixel(module, x, keys, values, query)
        torch.testing.assert_close(module(x), expected)


@given(data=st.data())
def test_channel_attention_is_the_equation(data):
    channels = data.draw(st.integers(1, 7))
    similarity = data.draw(st.sampled_from(['subtract', 'square']))
    module = ChannelPoolAttention(in_channels=channels, similarity=similarity).double()
    torch.nn.init.constant_(module.scale, 0.7)
    x = random_map(data, channels) / 4
    expected = x.clone()
    with torch.no_grad():
        for n in range(x.shape[0]):
            energy = [[(x[n, j] * x[n, i]).sum() for i in range(channels)] for j in range(channels)]
            for j in range(channels):
                distances = torch.stack([max(energy[j]) - e for e in energy[j]])
                if similarity == 'square':
                    distances = distances**2
                weights = distances.exp() / distances.exp().sum()
                expected[n, j] += 0.7 * sum(w * x[n, i] for i, w in enumerate(weights))
        torch.testing.assert_close(module(x), expected)


def any_attention(data, *, pyramids=PYRAMIDS):
    channels = data.draw(st.integers(1, 9))
    if data.draw(st.booleans()):
        module = ChannelPoolAttention(
            in_channels=channels, similarity=data.draw(st.sampled_from(['subtract', 'square']))
        )
    else:
        key_sizes, value_sizes = data.draw(st.sampled_from(pyramids))
        module = SpatialPoolAttention(
            in_channels=channels,
            key_sizes=key_sizes,
            value_sizes=value_sizes,
            qkv=data.draw(st.sampled_from(['identity', 'conv'])),
            pooling=data.draw(st.sampled_from(['avg', 'max'])),
            scaled=data.draw(st.booleans()),
        )
    torch.nn.init.constant_(module.scale, 0.7)
    return module.double(), random_map(data, channels)


@given(data=st.data())
def test_an_attention_keeps_the_shape_and_looks_at_each_image_alone(data):
    module, x = any_attention(data)
    together = module(x)
    assert together.shape == x.shape
    alone = torch.cat([module(image) for image in x.split(1)])
    torch.testing.assert_close(together, alone)


@given(data=st.data())
def test_an_attention_gives_everything_a_finite_gradient(data):
    module, x = any_attention(data)
    x.requires_grad_()
    module(x).square().sum().backward()
    for tensor in (x, *module.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@given(data=st.data())
def test_permuted_channels_are_attended_alike(data):
    """Neither attention without convolutions knows an order of the channels."""
    channels = data.draw(st.integers(2, 9))
    module = data.draw(
        st.sampled_from(
            [ChannelPoolAttention(in_channels=channels), SpatialPoolAttention(in_channels=channels)]
        )
    ).double()
    torch.nn.init.constant_(module.scale, 0.7)
    x = random_map(data, channels)
    order = data.draw(st.permutations(range(channels)))
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order])


@given(data=st.data())
def test_mirrored_maps_are_attended_alike(data):
    """The bins of adaptive pooling lie symmetrically, so a mirror image gives a mirror image.

    Not so with different pool sizes for keys and values: a key then weighs another place.
    """
    module, x = any_attention(data, pyramids=PYRAMIDS[:2])
    torch.testing.assert_close(module(x.flip(3)), module(x).flip(3))
