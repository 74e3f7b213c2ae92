from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from mmseg_coop.apis.fast_convs import PackedConv2d, WinogradConv2d, prepare_convs

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='PyTorch without oneDNN'
)


def conv_of(*args, **kwargs):
    torch.manual_seed(0)
    return nn.Conv2d(*args, **kwargs).requires_grad_(False)


def assert_same(found, conv, x):
    expected = conv.double()(x.double())
    conv.float()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    'options',
    [
        dict(kernel_size=1, bias=False),
        dict(kernel_size=3, stride=2, padding=1),
        dict(kernel_size=(1, 5), padding=(0, 2), groups=4),
        dict(kernel_size=3, padding=6, dilation=6),
    ],
    ids=str,
)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_packed_convolutions_are_those_of_torch(options, layout):
    conv = conv_of(16, 32, **options)
    packed = PackedConv2d(conv, torch.Size((1, 16, 9, 12)))
    for shape in ((1, 16, 9, 12), (3, 16, 14, 13)):  # another size than it was prepared for
        x = torch.rand(shape).to(memory_format=layout)
        assert_same(packed(x), conv, x)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda conv: pickle.loads(pickle.dumps(conv))])
def test_packed_convolutions_can_be_copied(copied):
    conv, x = conv_of(16, 32, 3), torch.rand(1, 16, 9, 9)
    assert_same(copied(PackedConv2d(conv, x.shape))(x), conv, x)


@pytest.mark.parametrize('size', [(1, 1), (2, 9), (33, 33), (96, 70)])
@pytest.mark.parametrize(('bias', 'dilation'), [(True, 1), (False, 2), (True, 3)])
def test_winograd_is_the_convolution(size, bias, dilation):
    """One strip and several, sides of whole tiles and others, and images side by side."""
    conv = conv_of(8, 12, 3, padding=dilation, dilation=dilation, bias=bias)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.rand(2, 8, *size).to(memory_format=layout)
        assert_same(WinogradConv2d(conv)(x), conv, x)


@pytest.mark.parametrize(
    ('conv', 'kind'),
    [
        (conv_of(256, 256, 3, padding=1), WinogradConv2d),
        (conv_of(256, 256, 3, padding=2, dilation=2), WinogradConv2d),
        (conv_of(64, 256, 3, padding=1), PackedConv2d),
        (conv_of(128, 128, 3, padding=2, dilation=2), PackedConv2d),
        (conv_of(256, 256, 3, padding=2), PackedConv2d),
        (conv_of(256, 256, 3, padding=1).bfloat16(), PackedConv2d),
        (conv_of(8, 8, 3, padding=1, padding_mode='reflect'), nn.Conv2d),
        (conv_of(8, 8, 3, padding='same'), nn.Conv2d),
        (type('Derived', (nn.Conv2d,), {})(8, 8, 3), nn.Conv2d),
    ],
)
def test_what_becomes_of_a_convolution(conv, kind):
    if conv.weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip('oneDNN has no bfloat16 on this processor')
    model = nn.Sequential(nn.Sequential(conv))
    number = prepare_convs(model, {conv: torch.Size((1, conv.in_channels, 24, 24))})
    assert isinstance(model[0][0], kind)
    assert number == (kind is not nn.Conv2d)


def test_few_tiles_do_not_pay():
    model = nn.Sequential(conv_of(256, 256, 3, padding=1))
    prepare_convs(model, {model[0]: torch.Size((1, 256, 9, 9))})
    assert isinstance(model[0], PackedConv2d)


def test_a_convolution_with_a_hook_stays():
    conv = conv_of(8, 8, 3)
    conv.register_forward_hook(print)
    assert prepare_convs(nn.Sequential(conv), {conv: torch.Size((1, 8, 9, 9))}) == 0
