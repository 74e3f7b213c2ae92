"""What holds for all attention modules: compilation, export to ONNX, mixed precision, devices."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from mmengine.utils import digit_version
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_coop.models.attentions import (
    ChannelPoolAttention,
    PoolUnit,
    SpatialPoolAttention,
)

FEW = dict(key_sizes=(3, 4), value_sizes=(5,))  # small graphs
MODULES = dict(
    pool_avg=lambda c: PoolUnit(sizes=(1, 4)),
    pool_max=lambda c: PoolUnit(sizes=(1, 4), pooling='max'),
    spa=lambda c: SpatialPoolAttention(in_channels=c, **FEW),
    spa_conv=lambda c: SpatialPoolAttention(in_channels=c, qkv='conv', scaled=True, **FEW),
    spa_max=lambda c: SpatialPoolAttention(in_channels=c, qkv='conv', pooling='max', **FEW),
    cpa=lambda c: ChannelPoolAttention(in_channels=c),
    cpa_square=lambda c: ChannelPoolAttention(in_channels=c, similarity='square'),
    cpa_conv=lambda c: ChannelPoolAttention(in_channels=c, maximum='column', qkv='conv'),
)
ATTENTIONS = [name for name in MODULES if not name.startswith('pool')]
HAS_DYNAMO_EXPORTER = 'dynamo' in inspect.signature(torch.onnx.export).parameters


def build(name, channels=8):
    module = MODULES[name](channels).eval()
    if hasattr(module, 'scale'):
        torch.nn.init.constant_(module.scale, 0.7)
    return module


def compile_whole(module, **kwargs):
    """Compile without allowing graph breaks; the backend leaves out the slow code generation."""
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend='aot_eager', **kwargs)


@pytest.mark.parametrize('name', ['spa', 'spa_max', 'cpa_square'])
def test_compiles_without_a_graph_break(name):
    module = build(name)
    x = 0.3 * torch.randn(2, 8, 12, 17)
    results = []
    for run in (module, compile_whole(module)):
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        out.square().sum().backward()
        results.append((out, leaf.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('name', ['pool_avg', 'pool_max', 'spa_conv', 'cpa'])
@torch.no_grad()
def test_compiles_for_changing_map_sizes(name):
    module = build(name)
    compiled = compile_whole(module, dynamic=True)
    for size in [(12, 17), (20, 9)]:
        x = 0.3 * torch.randn(2, 8, *size)
        torch.testing.assert_close(compiled(x), module(x))


@torch.no_grad()
def test_compiles_under_autocast():
    module = build('spa')
    x = 0.3 * torch.randn(2, 8, 12, 17)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        compiled = compile_whole(module)(x)
    torch.testing.assert_close(compiled, module(x))


def check_onnx(module, path, sizes):
    session = pytest.importorskip(
        'onnxruntime', reason='onnxruntime runs what was exported'
    ).InferenceSession(path, providers=['CPUExecutionProvider'])
    for size in sizes:
        x = 0.3 * torch.randn(2, 8, *size)
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = module(x).detach()
        torch.testing.assert_close(torch.from_numpy(out), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', MODULES)
@pytest.mark.parametrize('dynamic', [False, True], ids=['fixed', 'dynamic'])
def test_exports_by_tracing(name, dynamic, tmp_path):
    pytest.importorskip('onnx', reason='the exporter needs onnx')
    module = build(name)
    axes = dict(x={0: 'batch', 2: 'height', 3: 'width'}, out={0: 'batch', 2: 'height', 3: 'width'})
    with warnings.catch_warnings():
        # says that it is old; a size that becomes a constant would be a TracerWarning
        warnings.filterwarnings('error', category=torch.jit.TracerWarning)
        warnings.filterwarnings('ignore', category=DeprecationWarning)
        torch.onnx.export(
            module,
            (torch.randn(1, 8, 20, 15),),
            str(tmp_path / 'module.onnx'),
            input_names=['x'],
            output_names=['out'],
            dynamic_axes=axes if dynamic else None,
            **(dict(dynamo=False) if HAS_DYNAMO_EXPORTER else {}),
        )
    sizes = [(20, 15), (7, 30), (1, 1), (3, 5)] if dynamic else []
    check_onnx(module, str(tmp_path / 'module.onnx'), sizes)


@pytest.mark.skipif(
    not HAS_DYNAMO_EXPORTER, reason='torch.onnx.export of this torch has no dynamo=True'
)
@pytest.mark.parametrize(
    ('name', 'dynamic'),
    [*((name, True) for name in ATTENTIONS), ('spa', False), ('spa_max', False), ('cpa', False)],
)
def test_exports_through_dynamo(name, dynamic, tmp_path):
    for package in ('onnx', 'onnxscript'):
        pytest.importorskip(package, reason=f'the exporter needs {package}')
    module = build(name)
    height, width = (torch.export.Dim(side, min=1, max=4096) for side in ('height', 'width'))
    torch.onnx.export(
        module,
        (torch.randn(2, 8, 20, 15),),
        str(tmp_path / 'module.onnx'),
        dynamo=True,
        dynamic_shapes=({2: height, 3: width},) if dynamic else None,
        verbose=False,
    )
    sizes = [(20, 15), (7, 30), (1, 1), (3, 5)] if dynamic else [(20, 15)]
    check_onnx(module, str(tmp_path / 'module.onnx'), sizes)


@pytest.mark.skipif(
    not HAS_DYNAMO_EXPORTER, reason='torch.export of this torch knows no dynamic shapes like these'
)
@pytest.mark.parametrize('name', MODULES)
@torch.no_grad()
def test_exports_as_a_program_for_any_size(name):
    module = build(name)
    sizes = dict(x={2: torch.export.Dim('height', min=2), 3: torch.export.Dim('width', min=2)})
    exported = torch.export.export(module, (torch.randn(2, 8, 20, 15),), dynamic_shapes=sizes)
    for size in [(20, 15), (7, 30), (3, 5)]:
        x = 0.3 * torch.randn(2, 8, *size)
        torch.testing.assert_close(exported.module()(x), module(x))


@pytest.mark.parametrize('shape', [(8, 12, 17), (2, 12, 8), (1, 2, 8, 12, 17)])
@pytest.mark.parametrize('name', MODULES)
def test_what_is_no_map_is_refused_by_its_dimensions(name, shape):
    message = rf'takes maps \(N, C, H, W\) but got {len(shape)} dimensions.*unsqueeze'
    with pytest.raises(ValueError, match=message):
        build(name)(torch.rand(shape))


def test_the_first_argument_may_be_positional():
    assert SpatialPoolAttention(64).in_channels == ChannelPoolAttention(64).in_channels == 64
    assert PoolUnit((1, 2)).num_anchors == 5


class RecordTypes(TorchDispatchMode):
    """Notes the types that products and softmax run in."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ('bmm', 'baddbmm', 'mm', '_softmax'):
            self.types |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    'dtype',
    [
        torch.bfloat16,
        pytest.param(
            torch.float16,
            marks=pytest.mark.skipif(
                digit_version(torch.__version__) < digit_version('2.4'),
                reason='autocast on the CPU knows only bfloat16 before torch 2.4',
            ),
        ),
    ],
)
@pytest.mark.parametrize('half_map', [False, True], ids=['float32_map', 'half_map'])
@pytest.mark.parametrize('name', ATTENTIONS)
def test_mixed_precision_is_finite_and_computes_in_float32(name, half_map, dtype):
    module = build(name, channels=32)
    x = (300 * torch.randn(1, 32, 96, 96)).to(dtype if half_map else torch.float32)
    x.requires_grad_()
    recorder = RecordTypes()
    with torch.autocast('cpu', dtype=dtype):
        with recorder:
            out = module(x)
        assert recorder.types == {torch.float32}
        assert out.dtype == x.dtype
    out.sum().backward()  # outside of autocast, as mmengine's AmpOptimWrapper does
    for tensor in (out, x.grad, *(p.grad for p in module.parameters())):
        assert tensor.isfinite().all()
    assert x.grad.any()


@pytest.mark.parametrize('name', ['pool_avg', 'spa', 'cpa', 'cpa_square'])
def test_autocast_changes_nothing_without_projections(name):
    module = build(name)
    x = 0.3 * torch.randn(2, 8, 13, 11)
    expected = module(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(module(x), expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
@pytest.mark.parametrize('name', MODULES)
def test_follows_the_type_of_the_map(name, dtype):
    module = build(name).to(dtype)
    x = 0.3 * torch.randn(2, 8, 13, 11, dtype=dtype)
    assert module(x).dtype == dtype


@pytest.mark.parametrize('name', MODULES)
def test_runs_on_any_device(name):
    module = build(name).to('meta')
    out = module(torch.empty(2, 8, 13, 11, device='meta'))
    assert out.device.type == 'meta'
    assert out.shape in [(2, 8, 13, 11), (2, 8, 17)]


@pytest.mark.parametrize('name', MODULES)
def test_moves_between_map_sizes_after_tracing(name):
    # Tensors kept from a traced call would have the size of that call.
    module = build(name)
    small, large = 0.3 * torch.randn(1, 8, 4, 5), 0.3 * torch.randn(1, 8, 9, 14)
    expected = module(large)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(module, small)
    torch.testing.assert_close(module(large), expected)
    if name != 'pool_max':
        torch.testing.assert_close(traced(large), expected)
