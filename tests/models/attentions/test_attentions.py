"""The attention modules: their equations sum by sum, and what holds for each of them."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from mmengine.utils import digit_version
from mmseg.models.decode_heads.da_head import CAM
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_coop.models.attentions import ChannelPoolAttention, PoolUnit, SpatialPoolAttention
from mmseg_coop.models.attentions.pool_unit import MOST_KEPT
from tests.models.base import DeployedSuite

EVEN, ODD = (1, 4, 8, 10, 12), (1, 5, 7, 9, 13)
#: Autocast on the CPU knows only bfloat16 before torch 2.4.
HALVES = [torch.bfloat16]
if digit_version(torch.__version__) >= digit_version('2.4'):
    HALVES.append(torch.float16)


def pooled(x, sizes, pooling='avg'):
    """Every cell of every grid, one after the other, ``(N, C, T)``."""
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


def projected(conv, x):
    """A 1x1 convolution, if there is one, as sums over channels."""
    if conv is None:
        return x
    weight, bias = conv.weight[:, :, 0, 0], conv.bias
    sums = [
        sum(weight[o, c] * x[:, c] for c in range(x.shape[1])) + bias[o] for o in range(len(bias))
    ]
    return torch.stack(sums, dim=1)


def weigh(energies):
    """Softmax from its definition, but for a factor that keeps the exponentials finite."""
    exponentials = (energies - energies.max()).exp()
    return exponentials / exponentials.sum()


class RecordTypes(TorchDispatchMode):
    """Notes what runs, and the types that products and softmax run in."""

    def __init__(self):
        super().__init__()
        self.types, self.names = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ in ('bmm', 'baddbmm', 'mm', '_softmax'):
            self.types |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return func(*args, **(kwargs or {}))


class MapSuite(DeployedSuite):
    """What holds for a module that takes a map and computes in float32 at least."""

    def literal(self, module, x):
        """The equations, sum by sum."""
        raise NotImplementedError

    def build(self, variant=None, **changed):
        module = super().build(variant, **changed)
        for name, parameter in module.named_parameters():
            if name != 'scale':
                torch.nn.init.normal_(parameter, std=0.3)
        return module

    @torch.no_grad()
    def test_equals_the_equations(self, variant, size):
        module = self.build(variant)
        (x,) = self.inputs(size)
        out = module(x)
        module, x = module.double(), x.double()
        expected = self.literal(module, x)
        torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-9)

    def test_gradient(self, variant):
        module = self.build(variant).double()
        # Distinct values, so that every maximum has a gradient.
        channels = self.arguments.get('in_channels', 3)
        x = 0.1 * torch.randperm(channels * 6).double().view(1, channels, 2, 3)
        parameters = dict(module.named_parameters())

        def run(x, *values):
            return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), x)

        assert torch.autograd.gradcheck(run, (x.requires_grad_(), *parameters.values()))

    @torch.no_grad()
    def test_memory_layout_does_not_matter(self, variant):
        module = self.build(variant)
        for size in ((6, 7), (1, 3)):
            (x,) = self.inputs(size)
            expected = module(x)
            channels_last = x.to(memory_format=torch.channels_last)
            strided = torch.stack([x, x], dim=4)[..., 0]
            crop = torch.cat([channels_last, channels_last], dim=3)[..., : size[1]]
            for other in (channels_last, strided, crop):
                torch.testing.assert_close(module(other), expected)

    @pytest.mark.parametrize('dtype', HALVES)
    @pytest.mark.parametrize('half_map', [False, True], ids=['float32_map', 'half_map'])
    def test_mixed_precision_is_finite_and_computes_in_float32(self, variant, half_map, dtype):
        module = self.build(variant)
        (x,) = self.inputs((96, 96), batch=1)
        x = (600 * x).to(dtype if half_map else torch.float32).requires_grad_()
        with torch.autocast('cpu', dtype=dtype):
            with RecordTypes() as recorder:
                out = module(x)
            assert recorder.types <= {torch.float32}
            assert out.dtype == x.dtype
        out.sum().backward()  # outside of autocast, as mmengine's AmpOptimWrapper does
        for tensor in (out, x.grad, *(p.grad for p in module.parameters())):
            assert tensor.isfinite().all()
        assert x.grad.any()

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
    def test_follows_type_and_device_of_the_map(self, variant, dtype):
        module = self.build(variant)
        (x,) = self.inputs((13, 11))
        assert module.to(dtype)(x.to(dtype)).dtype == dtype
        assert module.to('meta')(x.to('meta', dtype)).device.type == 'meta'

    @pytest.mark.parametrize('shape', [(8, 12, 17), (2, 12, 8), (1, 2, 8, 12, 17)])
    def test_what_is_no_map_is_refused_by_its_dimensions(self, shape):
        message = rf'takes maps \(N, C, H, W\) but got {len(shape)} dimensions.*unsqueeze'
        with pytest.raises(ValueError, match=message):
            self.build()(torch.rand(shape))


class AttentionSuite(MapSuite):
    """What holds for an attention: a map of the same shape, at first the same map."""

    def shapes(self, model, size, batch):
        return [(batch, self.arguments['in_channels'], *size)]

    def test_at_the_start_it_is_the_identity(self, variant):
        module = self.build(variant)
        torch.nn.init.zeros_(module.scale)
        for dtype in (torch.float32, torch.bfloat16):
            x = 600 * self.inputs((9, 7))[0].to(dtype)
            assert torch.equal(module.to(dtype)(x), x)

    def test_other_channels_are_refused(self, variant):
        with pytest.raises(ValueError, match=r'in_channels=4 but got a map with 6 channels'):
            self.build(variant)(torch.rand(1, 6, 5, 5))


class TestPoolUnit(MapSuite):
    type = 'PoolUnit'
    arguments: ClassVar = dict(sizes=(1, 3, 4))
    variants: ClassVar = dict(
        avg={},
        max=dict(pooling='max'),
        even=dict(sizes=EVEN),
        odd_max=dict(sizes=ODD, pooling='max'),
    )
    #: Divided by the even sizes, not divided, below most sizes, a line, a pixel.
    sizes = ((24, 40), (17, 22), (31, 30), (6, 9), (1, 30), (1, 1))
    deployed = ('avg', 'max')
    compilations = (('avg', 'dynamic'), ('max', 'dynamic'))
    refusals = (
        *((dict(sizes=sizes), 'sizes=.* holds no numbers') for sizes in ((), [], 4, None, '12')),
        *(
            (dict(sizes=(1, size)), f'number={size!r} is not a pos')
            for size in (0, -4, 2.0, True, '2')
        ),
        (dict(pooling='mean'), r"pooling='mean' is unknown; .*'avg', 'max'"),
    )

    def shapes(self, model, size, batch):
        return [(batch, 3, model.num_anchors)]

    def literal(self, module, x):
        return pooled(x, module.sizes, module.pooling)

    def test_has_no_parameters_and_no_state(self):
        pool = PoolUnit(EVEN)
        assert pool.num_anchors == PoolUnit(ODD).num_anchors == 325  # equation 7
        assert not list(pool.parameters())
        assert not pool.state_dict()

    test_exports_to_onnx_through_dynamo = None  # shown by the attentions, which hold two of it

    def test_the_exported_maximum_is_adaptive_max_pooling(self, size, monkeypatch):
        x = torch.randn(2, 3, *size)
        pool = PoolUnit((*EVEN, *ODD), pooling='max')
        expected = torch.cat([F.adaptive_max_pool2d(x, n).flatten(2) for n in pool.sizes], dim=2)
        monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
        torch.testing.assert_close(pool(x), expected, rtol=0, atol=0)

    @pytest.mark.skipif(
        not hasattr(torch.compiler, 'is_compiling'), reason='this torch cannot say if it compiles'
    )
    def test_averages_are_kept_and_serve_a_training_after_a_prediction(self):
        pool, x = PoolUnit(ODD), torch.randn(1, 2, 14, 9, requires_grad=True)
        with torch.inference_mode():
            expected = pool(x)
        pool(torch.randn(1, 2, 9, 14).double())
        with RecordTypes() as record:
            found = pool(x)
        assert 'arange' not in record.names
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        for side in range(3, 90):
            pool(torch.randn(1, 2, side, side))
        assert len(pool._kept) <= MOST_KEPT

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
    def test_half_precision_is_pooled_in_float32(self, dtype):
        # In half precision the weight 1/7 is rounded, so that even a constant would change.
        x = torch.full((1, 2, 97, 97), 999.0, dtype=dtype)
        anchors = PoolUnit((1, 7, 9))(x)
        assert torch.equal(anchors, torch.full_like(anchors, x[0, 0, 0, 0].item()))


class TestSpatialPoolAttention(AttentionSuite):
    type = 'SpatialPoolAttention'
    arguments: ClassVar = dict(in_channels=4, key_sizes=(3, 4), value_sizes=(5,))  # 25 anchors
    variants: ClassVar = dict(
        identity={},
        scaled=dict(scaled=True),
        max=dict(pooling='max'),
        conv=dict(qkv='conv'),
        conv_scaled=dict(qkv='conv', query_channels=3, scaled=True),
        conv_full=dict(qkv='conv', query_channels=4),  # as "{Q, K, V} in C x H x W" says
        conv_max=dict(qkv='conv', pooling='max'),
        same_sizes=dict(key_sizes=(2, 3), value_sizes=(2, 3)),
        paper=dict(key_sizes=EVEN, value_sizes=ODD),
    )
    deployed = ('identity', 'conv_scaled', 'conv_max')
    compilations = (
        ('identity', 'static'),
        ('identity', 'autocast'),
        ('conv_scaled', 'dynamic'),
        ('conv_max', 'static'),
    )
    refusals = (
        (dict(in_channels=0), 'in_channels=0 is not a positive integer'),
        (dict(key_sizes=()), r'key_sizes=\(\) holds no numbers'),
        (dict(value_sizes=(1, -5)), r'value_sizes=\(1, -5\): number=-5 is not a positive integer'),
        (dict(key_sizes=(1, 2), value_sizes=(3,)), r'give 5 anchors and value_sizes=\(3,\) 9'),
        (dict(qkv='linear'), "qkv='linear' is unknown; choose one of"),
        (dict(pooling='sum'), "pooling='sum' is unknown; choose one of"),
        (dict(query_channels=4), "leave it out or set qkv='conv'"),
        (dict(query_channels=0, qkv='conv'), 'query_channels=0 is not a positive integer'),
    )

    def literal(self, module, x):
        """Equations 8 and 9: Q, K, V from the map, K and V pooled, then each pixel's sum."""
        q = projected(module.query, x).flatten(2)
        k, v = (
            pooled(projected(conv, x), unit.sizes, unit.pooling)
            for conv, unit in ((module.key, module.pool_keys), (module.value, module.pool_values))
        )
        divisor = math.sqrt(q.shape[1]) if module.energy_scale != 1 else 1
        out = x.flatten(2).clone()
        for image in range(len(x)):
            for j in range(q.shape[2]):
                energies = (k[image] * q[image, :, j : j + 1]).sum(dim=0) / divisor
                out[image, :, j] += module.scale * (v[image] * weigh(energies)).sum(dim=1)
        return out.view_as(x)

    def test_defaults_are_the_papers(self):
        module = SpatialPoolAttention(64)
        assert (module.pool_keys.sizes, module.pool_values.sizes) == ([*EVEN], [*ODD])
        assert module.pool_keys.pooling == module.pool_values.pooling == 'avg'
        assert module.energy_scale == 1
        assert list(module.state_dict()) == ['scale']
        assert module.scale.numel() == 1
        conv = SpatialPoolAttention(64, qkv='conv')
        assert [m.out_channels for m in (conv.query, conv.key, conv.value)] == [8, 8, 64]
        assert SpatialPoolAttention(4, qkv='conv').query.out_channels == 1


class TestChannelPoolAttention(AttentionSuite):
    type = 'ChannelPoolAttention'
    arguments: ClassVar = dict(in_channels=4)
    variants: ClassVar = dict(
        subtract={},
        square=dict(similarity='square'),
        column=dict(maximum='column'),
        column_square=dict(maximum='column', similarity='square'),
        conv=dict(qkv='conv'),
        conv_column_square=dict(qkv='conv', maximum='column', similarity='square'),
    )
    sizes = ((6, 5), (9, 14), (2, 1), (1, 1))
    deployed = ('subtract', 'square', 'conv_column_square')
    compilations = (('subtract', 'dynamic'), ('square', 'static'))
    refusals = (
        (dict(in_channels=-1), 'in_channels=-1 is not a positive integer'),
        (dict(similarity='cosine'), r"similarity='cosine' .*'subtract', 'square'"),
        (dict(maximum='all'), r"maximum='all' .*'row', 'column'"),
        (dict(qkv='linear'), r"qkv='linear' .*'identity', 'conv'"),
    )

    def literal(self, module, x):
        """Equations 10 to 14, sum by sum."""
        q, k, v = (projected(c, x).flatten(2) for c in (module.query, module.key, module.value))
        channels = range(x.shape[1])
        out = x.flatten(2).clone()
        for image in range(len(x)):
            d = [[(q[image, j] * k[image, i]).sum() for i in channels] for j in channels]
            columns = [max(d[j][i] for j in channels) for i in channels]  # 1 x 1 x C
            for j in channels:
                largest = columns if module.maximum == 'column' else [max(d[j])] * len(channels)
                distances = torch.stack([largest[i] - d[j][i] for i in channels])
                if module.similarity == 'square':
                    distances = distances**2
                weights = weigh(distances)
                out[image, j] += module.scale * sum(weights[i] * v[image, i] for i in channels)
        return out.view_as(x)

    @pytest.mark.parametrize('side', [96, 13, 1])
    def test_subtract_is_danets_channel_attention(self, side):
        module, reference = ChannelPoolAttention(8), CAM()
        for scale in (module.scale, reference.gamma.scale):
            torch.nn.init.constant_(scale, 0.7)
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
            x = torch.randn(2, 8, side, side, dtype=dtype)
            grad = torch.randn_like(x)
            results = []
            for attention in (module.to(dtype), reference.to(dtype)):
                leaf = x.clone().requires_grad_()
                out = attention(leaf)
                gradients = torch.autograd.grad(out, [leaf, *attention.parameters()], grad)
                results.append((out, *gradients))
            for ours, theirs in zip(*results, strict=True):
                largest = max(theirs.abs().max().item(), 1)
                torch.testing.assert_close(
                    ours.flatten(), theirs.flatten(), rtol=tolerance, atol=tolerance * largest
                )

    def test_the_maximum_of_the_column_is_another_attention(self):
        """Not of the row: softmax takes off what a row shares, so only the column's own stays.

        The energies of channels of 1 and 2 are [[1, 2], [2, 4]].
        """
        x = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
        for maximum, distances in (('row', [[1, 0], [2, 0]]), ('column', [[1, 2], [0, 0]])):
            module = ChannelPoolAttention(2, maximum=maximum)
            torch.nn.init.constant_(module.scale, 1)
            weights = torch.tensor(distances).float().softmax(dim=1)
            expected = x + torch.einsum('ji,nihw->njhw', weights, x)
            torch.testing.assert_close(module(x), expected)
