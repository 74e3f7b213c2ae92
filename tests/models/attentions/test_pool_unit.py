from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

from mmseg_coop.models.attentions import PoolUnit

EVEN = (1, 4, 8, 10, 12)
ODD = (1, 5, 7, 9, 13)
#: Divided by the even sizes, not divided, below most sizes, a line, a pixel.
MAPS = [(24, 40), (17, 22), (6, 9), (1, 30), (1, 1)]


def literal(x, sizes, pooling):
    """Every cell of every grid, one after the other."""
    reduce = torch.mean if pooling == 'avg' else torch.amax
    height, width = x.shape[2:]
    cells = []
    for n in sizes:
        for i in range(n):
            for j in range(n):
                top, bottom = math.floor(i * height / n), math.ceil((i + 1) * height / n)
                left, right = math.floor(j * width / n), math.ceil((j + 1) * width / n)
                cells.append(reduce(x[:, :, top:bottom, left:right], dim=(2, 3)))
    return torch.stack(cells, dim=2)


@pytest.mark.parametrize('size', MAPS)
@pytest.mark.parametrize('sizes', [EVEN, ODD])
@pytest.mark.parametrize('pooling', ['avg', 'max'])
def test_equals_the_cells_one_by_one(size, sizes, pooling):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    pool = PoolUnit(sizes=sizes, pooling=pooling)
    expected = literal(x, sizes, pooling)
    assert expected.shape[2] == pool.num_anchors == 325
    torch.testing.assert_close(pool(x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(pool(x.float()), expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize('size', [*MAPS, (31, 30)])
def test_the_exported_maximum_is_adaptive_max_pooling(size, monkeypatch):
    x = torch.randn(2, 3, *size)
    pool = PoolUnit(sizes=(*EVEN, *ODD), pooling='max')
    expected = torch.cat([F.adaptive_max_pool2d(x, n).flatten(2) for n in pool.sizes], dim=2)
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
    torch.testing.assert_close(pool(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize('pooling', ['avg', 'max'])
@pytest.mark.parametrize('size', [(5, 3), (2, 1)])
def test_gradient(pooling, size):
    # distinct values, so that every maximum has a gradient
    x = torch.randperm(2 * math.prod(size)).double().view(1, 2, *size).requires_grad_()
    assert torch.autograd.gradcheck(PoolUnit(sizes=(1, 3, 4), pooling=pooling), (x,))


@pytest.mark.parametrize('pooling', ['avg', 'max'])
def test_memory_layout_does_not_matter(pooling):
    pool = PoolUnit(sizes=(1, 3, 4), pooling=pooling)
    for x in (torch.randn(2, 5, 9, 11), torch.randn(1, 2, 1, 3)):
        expected = pool(x)
        channels_last = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(pool(channels_last), expected)
        strided = torch.stack([x, x], dim=4)[..., 0]
        torch.testing.assert_close(pool(strided), expected)
        crop = torch.cat([channels_last, channels_last], dim=3)[..., : x.shape[3]]
        torch.testing.assert_close(pool(crop), expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_pooled_in_float32(dtype):
    # In half precision the weight 1/7 is rounded, so that even a constant would change.
    x = torch.full((1, 2, 97, 97), 999.0, dtype=dtype)
    pooled = PoolUnit(sizes=(1, 7, 9))(x)
    assert torch.equal(pooled, torch.full_like(pooled, x[0, 0, 0, 0].item()))


def test_autocast_does_not_reach_the_products():
    x = torch.randn(1, 2, 20, 20)
    pool = PoolUnit(sizes=(1, 7, 9))
    expected = pool(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(pool(x), expected)


def test_one_unit_serves_many_map_sizes_and_has_no_state():
    pool = PoolUnit(sizes=EVEN)
    for size in MAPS:
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(pool(x), literal(x, EVEN, 'avg'))
    assert list(pool.parameters()) == []
    assert pool.state_dict() == {}


def test_moves_to_any_device():
    pool = PoolUnit(sizes=EVEN).to('meta')
    assert pool(torch.empty(2, 3, 20, 30, device='meta')).shape == (2, 3, 325)


def test_is_registered():
    pool = MODELS.build(dict(type='PoolUnit', sizes=[2, 3], pooling='max'))
    assert pool(torch.rand(1, 1, 4, 4)).shape == (1, 1, 13)


@pytest.mark.parametrize('sizes', [(), [], 4, None, '12'])
def test_no_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=r'sizes=.* holds no pool sizes; give at least one'):
        PoolUnit(sizes=sizes)


@pytest.mark.parametrize('size', [0, -4, 2.0, True, '2'])
def test_sizes_that_are_not_positive_integers_are_refused(size):
    with pytest.raises(ValueError, match=f'pool size={size!r} is not a positive integer'):
        PoolUnit(sizes=(1, size))


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match=r"pooling='mean' is unknown; .*'avg', 'max'"):
        PoolUnit(sizes=(1,), pooling='mean')
