from __future__ import annotations

import copy

import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.apis import inference_model
from mmseg.registry import MODELS
from torch import _inductor as inductor
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_coop.apis import load_model, optimize_for_inference
from mmseg_coop.apis.optimize import _round
from mmseg_coop.config import load_config
from mmseg_coop.engine import precision
from mmseg_coop.errors import ConfigError, InputError
from tests.apis.test_folding import randomize
from tests.conftest import MINI

IMAGE = torch.rand(1, 3, 65, 65)


@pytest.fixture
def model(coop_model_cfg):
    model = MODELS.build(coop_model_cfg()).eval()
    randomize(model)
    return model


def logits(model, image=IMAGE):
    with torch.no_grad():
        return model.encode_decode(image, [dict(img_shape=image.shape[2:])])


def difference(found, expected):
    """The largest, relative to the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


def test_the_default_is_exact_and_leaves_no_batch_norm(model):
    expected = logits(model)
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    convs = sum(type(module) is torch.nn.Conv2d for module in model.modules())
    fast = optimize_for_inference(model)
    assert fast is model
    done = f'{norms} of {norms} batch norms folded, channels last, {convs} convolutions prepared'
    assert fast.optimized == done
    assert difference(logits(fast), expected) < 1e-5
    assert not [module for module in fast.modules() if isinstance(module, _BatchNorm)]
    weight = fast.decode_head.networks.top.decoder[0].conv.weight  # not a plain convolution
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(parameter.requires_grad for parameter in fast.parameters())


def test_half_precision_is_inside_only(model):
    expected = logits(model)
    fast = optimize_for_inference(model, dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in fast.named_parameters() if 'conv' in name}
    exact = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert len(dtypes) > len(exact) > 0
    assert all('conv_seg' in name for name in exact)
    for of in (fast, copy.deepcopy(fast)):
        found = logits(of)
        assert found.dtype == torch.float32
        assert 1e-5 < difference(found, expected) < 0.05


def test_rounded_filters_keep_their_sums():
    filters = torch.full((4, 2, 3, 3), 1 + 2**-9)  # each by itself becomes 1
    rounded = _round(filters, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    lost = filters.sum((2, 3)) - rounded.double().sum((2, 3))
    assert lost.abs().max() <= 2**-8 < 9 * 2**-9


@pytest.mark.slow  # a minute of training
def test_labels_of_a_trained_pair_stay_in_bfloat16(tool, mini_data, run_options, tmp_path):
    data = mini_data(train=48, val=8, size='128x128')
    length = ('train_cfg.max_iters=200', 'param_scheduler.0.end=200', 'train_cfg.val_interval=200')
    words = run_options(data, *length, 'train_dataloader.batch_size=4', 'randomness.seed=0')
    words += ['default_hooks.checkpoint.interval=200']
    done = tool('tools/train.py', MINI, '--work-dir', tmp_path, *words)
    assert done.returncode == 0, done.stderr
    exact = load_model(load_config(str(MINI)), str(tmp_path / 'iter_200.pth'))
    half = optimize_for_inference(copy.deepcopy(exact), dtype='bfloat16')
    images = [str(path) for path in sorted((data / 'img_dir/val').iterdir())]
    found, expected = (
        torch.stack([sample.pred_sem_seg.data for sample in inference_model(model, images)])
        for model in (half, exact)
    )
    assert len(expected.unique()) > 5
    assert (found == expected).float().mean() >= 0.998


def test_a_processor_without_fast_bfloat16_is_said(model, tmp_path, monkeypatch):
    (tmp_path / 'cpuinfo').write_text('flags : avx2')
    monkeypatch.setattr(precision, '_CPU_INFO', tmp_path / 'cpuinfo')
    MMLogger.get_instance('slow', log_file=str(tmp_path / 'log'))
    optimize_for_inference(model, dtype='bfloat16', fuse=False)
    assert 'bfloat16 will be slow' in (tmp_path / 'log').read_text()


def test_a_copy_of_the_optimized_model_is_on_its_own(model):
    fast = optimize_for_inference(model, dtype='bfloat16')
    other = copy.deepcopy(fast)
    for parameter in fast.parameters():
        parameter.zero_()
    assert logits(other).abs().max() > 0 == logits(fast).abs().max()


def test_a_model_in_training_mode_is_refused(model):
    model.decode_head.train()
    with pytest.raises(InputError, match=r'CrossCoopEncoderDecoder is in training mode.*eval\(\)'):
        optimize_for_inference(model)


def test_a_model_that_is_optimized_stays_as_it_is(model):
    fast = optimize_for_inference(model)
    expected = logits(fast)
    with pytest.warns(UserWarning, match=r'optimised already .*channels last.* stays as it is'):
        assert optimize_for_inference(fast, dtype='bfloat16') is fast
    assert torch.equal(logits(fast), expected)


@pytest.mark.parametrize('dtype', ['float16', torch.int8, 'half'])
def test_types_that_cannot_be_computed_in_are_refused(model, dtype):
    with pytest.raises(InputError, match=f'{str(dtype)[-4:]} on cpu: take bfloat16'):
        optimize_for_inference(model, dtype=dtype)
    assert not hasattr(model, 'optimized')


def test_folding_that_would_change_the_logits_is_said(model):
    """A batch norm that a plain list holds as well is still run by that."""
    conv, norm = (getattr(model.decode_head.networks.top.bottleneck, n) for n in ('conv', 'bn'))
    hidden = [conv, norm, torch.nn.ReLU()]
    model.decode_head.networks.top.bottleneck.forward = lambda x: torch.nn.Sequential(*hidden)(x)
    with pytest.raises(InputError, match=r'changes its logits by .* fuse=False'):
        optimize_for_inference(model)


@pytest.mark.slow
def test_a_missing_compiler_is_said(model, tmp_path, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    missing = inductor.config.patch({'cpp.cxx': ('no-such-compiler',)})
    said = r'compile=True: torch.compile fails on cpu: .*C\+\+ compiler.* such as g\+\+'
    with missing, pytest.raises(ConfigError, match=said):
        optimize_for_inference(model, compile=True)
    assert not hasattr(model, 'optimized')


@pytest.mark.slow
def test_compiled_networks_compute_the_same(coop_model_cfg):
    model = MODELS.build(coop_model_cfg(dict(top='resnet', bottom='resnet'))).eval()
    randomize(model)
    expected = logits(model)
    fast = optimize_for_inference(model, compile=True)
    assert fast.optimized.endswith('compiled')
    assert difference(logits(fast), expected) < 1e-5
