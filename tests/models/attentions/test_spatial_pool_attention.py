from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mmseg.registry import MODELS

from mmseg_coop.models.attentions import SpatialPoolAttention

#: Divided by the sizes below, not divided, below the sizes, a pixel.
MAPS = [(12, 8), (7, 9), (2, 3), (1, 1)]
SMALL = dict(key_sizes=(3, 4), value_sizes=(5,))  # 25 anchors
OPTIONS = [
    dict(),
    dict(scaled=True),
    dict(pooling='max'),
    dict(qkv='conv'),
    dict(qkv='conv', query_channels=3, scaled=True),
    dict(qkv='conv', query_channels=4),  # full width, as "{Q, K, V} in C x H x W" says
    dict(qkv='conv', pooling='max'),
]


def attention(**kwargs):
    """An attention whose scale and biases are not 0."""
    module = SpatialPoolAttention(**{'in_channels': 4, **kwargs})
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def pool(x, sizes, pooling):
    """The cells of all grids of a map (C, H, W), one after the other, as rows (T, C)."""
    reduce = np.mean if pooling == 'avg' else np.max
    height, width = x.shape[1:]
    cells = []
    for n in sizes:
        for i in range(n):
            for j in range(n):
                top, bottom = math.floor(i * height / n), math.ceil((i + 1) * height / n)
                left, right = math.floor(j * width / n), math.ceil((j + 1) * width / n)
                cells.append(reduce(x[:, top:bottom, left:right], axis=(1, 2)))
    return np.array(cells)


def project(conv, x):
    """A 1x1 convolution of a map (C, H, W), pixel by pixel."""
    if conv is None:
        return x
    weight = conv.weight.detach().double().numpy()[:, :, 0, 0]
    bias = conv.bias.detach().double().numpy()
    out = np.empty((len(bias), *x.shape[1:]))
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            out[:, row, column] = weight @ x[:, row, column] + bias
    return out


def literal(module, x):
    """Equations 8 and 9: Q, K, V from the map, K and V pooled, then the sums."""
    scale = module.scale.item()
    out = x.double().numpy().copy()
    for image in range(len(out)):
        x = out[image].copy()
        q = project(module.query, x).reshape(-1, x[0].size).T
        k = pool(project(module.key, x), module.pool_keys.sizes, module.pool_keys.pooling)
        v = pool(project(module.value, x), module.pool_values.sizes, module.pool_values.pooling)
        divisor = math.sqrt(q.shape[1]) if module.energy_scale != 1 else 1
        for j in range(len(q)):
            exponentials = [math.exp(k[i] @ q[j] / divisor) for i in range(len(k))]
            total = sum(exponentials)
            context = sum(exponentials[i] / total * v[i] for i in range(len(v)))
            out[image][:, j // x.shape[2], j % x.shape[2]] += scale * context
    return torch.from_numpy(out)


@pytest.mark.parametrize('size', MAPS)
@pytest.mark.parametrize('options', OPTIONS)
def test_equals_the_equations(size, options):
    module = attention(**SMALL, **options)
    x = torch.randn(2, 4, *size)
    expected = literal(module, x)
    torch.testing.assert_close(module(x), expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.double()(x.double()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('size', [(24, 16), (11, 14), (1, 1)])
@pytest.mark.parametrize(
    'sizes',
    [
        dict(),
        dict(key_sizes=(1, 5, 7, 9, 13), value_sizes=(1, 5, 7, 9, 13)),
        dict(key_sizes=(1, 4, 8, 10, 12), value_sizes=(1, 4, 8, 10, 12)),
    ],
    ids=['mixed', 'odd', 'even'],
)
def test_the_papers_sizes_equal_the_equations(size, sizes):
    module = attention(**sizes).double()
    assert module.pool_keys.num_anchors == module.pool_values.num_anchors == 325  # equation 7
    x = torch.randn(1, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(module(x), literal(module, x), rtol=0, atol=1e-9)


def test_defaults_are_the_papers():
    module = SpatialPoolAttention(in_channels=64)
    assert (module.pool_keys.sizes, module.pool_values.sizes) == (
        [1, 4, 8, 10, 12],
        [1, 5, 7, 9, 13],
    )
    assert module.pool_keys.pooling == module.pool_values.pooling == 'avg'
    assert module.energy_scale == 1
    assert module.query is module.key is module.value is None
    conv = SpatialPoolAttention(in_channels=64, qkv='conv')
    assert [m.out_channels for m in (conv.query, conv.key, conv.value)] == [8, 8, 64]
    assert SpatialPoolAttention(in_channels=4, qkv='conv').query.out_channels == 1


@pytest.mark.parametrize('options', OPTIONS)
def test_gradient(options):
    module = attention(key_sizes=(1, 2), value_sizes=(2, 1), **options).double()
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    parameters = dict(module.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


@pytest.mark.parametrize('options', OPTIONS)
def test_at_the_start_it_is_the_identity(options):
    module = SpatialPoolAttention(in_channels=4, **options)
    for dtype in (torch.float32, torch.bfloat16):
        x = 300 * torch.randn(2, 4, 9, 7, dtype=dtype)
        assert torch.equal(module.to(dtype)(x), x)


def test_identity_adds_one_parameter():
    for module in (
        SpatialPoolAttention(in_channels=512),
        SpatialPoolAttention(in_channels=512, pooling='max', scaled=True),
    ):
        assert {name: p.numel() for name, p in module.named_parameters()} == dict(scale=1)
        assert list(module.state_dict()) == ['scale']


def test_conv_adds_three_projections():
    module = SpatialPoolAttention(in_channels=16, qkv='conv')
    count = sum(p.numel() for p in module.parameters())
    assert count == 1 + 2 * (16 * 2 + 2) + (16 * 16 + 16)


@pytest.mark.parametrize('options', OPTIONS)
def test_memory_layout_does_not_matter(options):
    module = attention(**SMALL, **options)
    x = torch.randn(2, 4, 6, 7)
    expected = module(x)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(module(torch.stack([x, x], dim=4)[..., 0]), expected)


def test_is_registered():
    module = MODELS.build(dict(type='SpatialPoolAttention', in_channels=8, qkv='conv', **SMALL))
    assert module(torch.rand(1, 8, 5, 5)).shape == (1, 8, 5, 5)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(in_channels=0), 'in_channels=0 is not a positive integer'),
        (dict(key_sizes=()), r'key_sizes=\(\) holds no pool sizes'),
        (
            dict(value_sizes=(1, -5)),
            r'value_sizes=\(1, -5\): pool size=-5 is not a positive integer',
        ),
        (dict(key_sizes=(1, 2), value_sizes=(3,)), r'give 5 anchors and value_sizes=\(3,\) 9'),
        (dict(qkv='linear'), "qkv='linear' is unknown; choose one of"),
        (dict(pooling='sum'), "pooling='sum' is unknown; choose one of"),
        (dict(query_channels=4), "leave it out or set qkv='conv'"),
        (dict(query_channels=0, qkv='conv'), 'query_channels=0 is not a positive integer'),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpatialPoolAttention(**{'in_channels': 8, **arguments})


@pytest.mark.parametrize('options', [dict(), dict(qkv='conv')])
def test_other_channels_are_refused(options):
    module = SpatialPoolAttention(in_channels=8, **options)
    with pytest.raises(ValueError, match=r'in_channels=8 but got a map with 6 channels'):
        module(torch.rand(1, 6, 5, 5))
