from __future__ import annotations

import math

import pytest
import torch
from mmseg.models.decode_heads.da_head import CAM
from mmseg.registry import MODELS

from mmseg_coop.models.attentions import ChannelPoolAttention

MAPS = [(6, 5), (2, 1), (1, 1)]
SIMILARITIES = ['subtract', 'square']
OPTIONS = [
    dict(similarity='subtract'),
    dict(similarity='square'),
    dict(maximum='column'),
    dict(maximum='column', similarity='square'),
    dict(qkv='conv'),
    dict(qkv='conv', maximum='column', similarity='square'),
]


def attention(**options):
    """An attention of five channels whose scale is not 0, and whose convolutions have biases."""
    module = ChannelPoolAttention(in_channels=5, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.constant_(module.scale, 0.7)
    return module


def project(conv, x):
    """A 1x1 convolution of a map, channel by channel, as lists of pixels."""
    if conv is None:
        return x.tolist()
    weights, biases = conv.weight[:, :, 0, 0].tolist(), conv.bias.tolist()
    return [
        [
            bias + sum(w * value for w, value in zip(row, pixel, strict=True))
            for pixel in x.T.tolist()
        ]
        for row, bias in zip(weights, biases, strict=True)
    ]


def literal(module, x):
    """Equations 10 to 14, sum by sum."""
    scale = module.scale.item()
    out = x.double().clone()
    for image in range(len(x)):
        x_image = x[image].double().flatten(1)
        channels, pixels = x_image.shape
        q, k = project(module.query, x_image), project(module.key, x_image)
        v = torch.tensor(project(module.value, x_image), dtype=torch.float64)
        d = [
            [sum(q[j][p] * k[i][p] for p in range(pixels)) for i in range(channels)]
            for j in range(channels)
        ]
        columns = [max(d[j][i] for j in range(channels)) for i in range(channels)]  # 1 x 1 x C
        for j in range(channels):
            largest = columns if module.maximum == 'column' else [max(d[j])] * channels
            c = [largest[i] - d[j][i] for i in range(channels)]
            if module.similarity == 'square':
                c = [entry**2 for entry in c]
            total = sum(math.exp(entry) for entry in c)
            context = sum(math.exp(c[i]) / total * v[i] for i in range(channels))
            out[image, j] += scale * context.view_as(out[image, j])
    return out


@pytest.mark.parametrize('size', MAPS)
@pytest.mark.parametrize('options', OPTIONS)
def test_equals_the_equations(size, options):
    module = attention(**options)
    x = 0.5 * torch.randn(2, 5, *size)
    expected = literal(module, x)
    torch.testing.assert_close(module(x), expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.double()(x.double()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('size', [(96, 96), (9, 13), (1, 1)])
def test_subtract_is_danets_channel_attention(size):
    module, reference = ChannelPoolAttention(in_channels=8), CAM()
    for scale in (module.scale, reference.gamma.scale):
        torch.nn.init.constant_(scale, 0.7)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        x = torch.randn(2, 8, *size, dtype=dtype)
        grad = torch.randn_like(x)
        results = []
        for attention in (module.to(dtype), reference.to(dtype)):
            leaf = x.clone().requires_grad_()
            out = attention(leaf)
            results.append((out, *torch.autograd.grad(out, [leaf, *attention.parameters()], grad)))
        ours, theirs = results
        torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=tolerance)
        for mine, other in zip(ours[1:], theirs[1:], strict=True):
            scale = other.abs().max().item()
            torch.testing.assert_close(
                mine.flatten(), other.flatten(), rtol=tolerance, atol=tolerance * max(scale, 1)
            )


@pytest.mark.parametrize('options', OPTIONS)
def test_gradient(options):
    module = attention(**options).double()
    x = 0.5 * torch.randn(2, 5, 2, 4, dtype=torch.float64)
    names = [name for name, _ in module.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *module.parameters()))


def test_the_maximum_of_the_column_is_another_attention():
    """Not of the row: softmax takes off what a row shares, so only the column's own maximum stays.

    The energies of channels of 1 and 2 are [[1, 2], [2, 4]].
    """
    x = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    for maximum, distances in (('row', [[1, 0], [2, 0]]), ('column', [[1, 2], [0, 0]])):
        module = ChannelPoolAttention(in_channels=2, maximum=maximum)
        torch.nn.init.constant_(module.scale, 1)
        weights = torch.tensor(distances).float().softmax(dim=1)
        expected = x + torch.einsum('ji,nihw->njhw', weights, x)
        torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize('options', OPTIONS)
def test_at_the_start_it_is_the_identity(options):
    module = ChannelPoolAttention(in_channels=4, **options)
    for dtype in (torch.float32, torch.bfloat16):
        x = 300 * torch.randn(2, 4, 9, 7, dtype=dtype)
        assert torch.equal(module.to(dtype)(x), x)


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_adds_one_parameter(similarity):
    module = ChannelPoolAttention(in_channels=512, similarity=similarity)
    assert {name: p.numel() for name, p in module.named_parameters()} == dict(scale=1)
    assert list(module.state_dict()) == ['scale']


def test_convolutions_have_the_full_width():
    module = ChannelPoolAttention(in_channels=64, qkv='conv')
    for conv in (module.query, module.key, module.value):
        assert conv.weight.shape == (64, 64, 1, 1)
    assert sum(p.numel() for p in module.parameters()) == 3 * (64**2 + 64) + 1


@pytest.mark.parametrize('options', OPTIONS)
def test_memory_layout_does_not_matter(options):
    module = attention(**options).double()
    x = 0.5 * torch.randn(2, 5, 6, 7, dtype=torch.float64)
    expected = module(x)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(module(torch.stack([x, x], dim=4)[..., 0]), expected)


def test_is_registered():
    module = MODELS.build(dict(type='ChannelPoolAttention', in_channels=8, similarity='square'))
    assert module(torch.rand(1, 8, 5, 5)).shape == (1, 8, 5, 5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match='in_channels=-1 is not a positive integer'):
        ChannelPoolAttention(in_channels=-1)
    with pytest.raises(ValueError, match=r"similarity='cosine' .*'subtract', 'square'"):
        ChannelPoolAttention(in_channels=4, similarity='cosine')
    with pytest.raises(ValueError, match=r"maximum='all' .*'row', 'column'"):
        ChannelPoolAttention(in_channels=4, maximum='all')
    with pytest.raises(ValueError, match=r"qkv='linear' .*'identity', 'conv'"):
        ChannelPoolAttention(in_channels=4, qkv='linear')
    with pytest.raises(ValueError, match='in_channels=8 but got a map with 6 channels'):
        ChannelPoolAttention(in_channels=8)(torch.rand(1, 6, 5, 5))
