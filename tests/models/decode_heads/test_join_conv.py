from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmseg_coop.analysis.attention_cost import LiveBytes
from mmseg_coop.models.decode_heads.join_conv import JoinConv2d


def as_written(conv, small, large):
    """The convolution of the resized and the other map, made one after the other."""
    resized = F.interpolate(
        small, size=large.shape[2:], mode='bilinear', align_corners=conv.align_corners
    )
    joined = torch.cat([resized, large], dim=1)
    return F.conv2d(joined, conv.weight, conv.bias, padding=conv.padding)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ('small', 'large', 'size'),
    [
        ((5, 6), (17, 21), 3),
        ((4, 4), (16, 13), 5),
        ((1, 1), (7, 3), 3),
        ((6, 3), (6, 3), 3),
        ((9, 8), (4, 2), 3),
    ],
)
def test_equals_resize_join_and_convolution(small, large, size, layout, align_corners):
    conv = JoinConv2d(7 + 3, 4, size, padding=size // 2, align_corners=align_corners).double()
    conv.to(memory_format=layout)
    maps = [
        torch.randn(2, channels, *side, dtype=torch.float64).contiguous(memory_format=layout)
        for channels, side in ((7, small), (3, large))
    ]
    maps = [x.requires_grad_() for x in maps]
    leaves = [*maps, *conv.parameters()]
    found, expected = conv(tuple(maps)), as_written(conv, *maps)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, weights),
        torch.autograd.grad(expected, leaves, weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@torch.no_grad()
def test_float32_is_exact_but_for_rounding_at_a_fraction_of_the_operations():
    conv = JoinConv2d(256 + 48, 256, 3, padding=1)
    maps = torch.randn(1, 256, 17, 17).relu(), torch.randn(1, 48, 65, 65).relu()
    precise = as_written(conv.double(), *(x.double() for x in maps))
    conv.float()
    errors, counts = [], []
    for function in (conv, lambda maps: as_written(conv, *maps)):
        with FlopCounterMode(display=False) as counter:
            errors.append((function(maps) - precise).abs().max() / precise.abs().max())
        counts.append(counter.get_total_flops())
    assert errors[0] < 3e-6  # as large as that of the other way, which depends on the processor
    assert errors[0] < 3 * errors[1]
    assert counts[0] < counts[1] / 3


@pytest.mark.parametrize('has_gradient', [False, True])
def test_takes_no_more_memory_than_the_joined_map(has_gradient):
    with torch.device('meta'):
        conv = JoinConv2d(256 + 48, 256, 3, padding=1)
        maps = torch.empty(1, 256, 33, 33), torch.empty(1, 48, 129, 129)
    peaks = []
    for function in (conv, lambda maps: as_written(conv, *maps)):
        small = maps[0].detach().requires_grad_(has_gradient)
        with torch.set_grad_enabled(has_gradient), LiveBytes() as live:
            result = function((small, maps[1]))
            if has_gradient:
                result.sum().backward()
        conv.zero_grad(set_to_none=True)
        peaks.append(live.peak)
    assert peaks[0] <= peaks[1]
