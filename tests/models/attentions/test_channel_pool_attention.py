from __future__ import annotations

import math

import pytest
import torch
from mmseg.models.decode_heads.da_head import CAM
from mmseg.registry import MODELS

from mmseg_coop.models.attentions import ChannelPoolAttention

MAPS = [(6, 5), (2, 1), (1, 1)]
SIMILARITIES = ['subtract', 'square']


def literal(module, x):
    """Equations 10 to 14, sum by sum."""
    scale = module.scale.item()
    out = x.double().clone()
    for image in range(len(x)):
        v = x[image].double().flatten(1)
        channels, pixels = v.shape
        values = v.tolist()
        d = [
            [sum(values[j][p] * values[i][p] for p in range(pixels)) for i in range(channels)]
            for j in range(channels)
        ]
        for j in range(channels):
            c = [max(d[j]) - d[j][i] for i in range(channels)]
            if module.similarity == 'square':
                c = [entry**2 for entry in c]
            total = sum(math.exp(entry) for entry in c)
            context = sum(math.exp(c[i]) / total * v[i] for i in range(channels))
            out[image, j] += scale * context.view_as(out[image, j])
    return out


@pytest.mark.parametrize('size', MAPS)
@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_equals_the_equations(size, similarity):
    module = ChannelPoolAttention(in_channels=5, similarity=similarity)
    torch.nn.init.constant_(module.scale, 0.7)
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


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_gradient(similarity):
    module = ChannelPoolAttention(in_channels=3, similarity=similarity).double()
    x = 0.5 * torch.randn(2, 3, 2, 4, dtype=torch.float64)

    def run(x, scale):
        return torch.func.functional_call(module, dict(scale=scale), x)

    scale = torch.tensor([0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), scale.requires_grad_()))


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_at_the_start_it_is_the_identity(similarity):
    module = ChannelPoolAttention(in_channels=4, similarity=similarity)
    for dtype in (torch.float32, torch.bfloat16):
        x = 300 * torch.randn(2, 4, 9, 7, dtype=dtype)
        assert torch.equal(module.to(dtype)(x), x)


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_adds_one_parameter(similarity):
    module = ChannelPoolAttention(in_channels=512, similarity=similarity)
    assert {name: p.numel() for name, p in module.named_parameters()} == dict(scale=1)
    assert list(module.state_dict()) == ['scale']


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_memory_layout_does_not_matter(similarity):
    module = ChannelPoolAttention(in_channels=4, similarity=similarity)
    torch.nn.init.constant_(module.scale, 0.7)
    x = 0.5 * torch.randn(2, 4, 6, 7)
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
    with pytest.raises(ValueError, match='in_channels=8 but got a map with 6 channels'):
        ChannelPoolAttention(in_channels=8)(torch.rand(1, 6, 5, 5))
