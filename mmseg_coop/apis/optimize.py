"""Makes a trained model fast: batch norms folded, layouts, half precision, compiled."""

from __future__ import annotations

import warnings
from types import MethodType
from typing import Any

import torch
from mmseg.models import BaseSegmentor
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map

from ..engine.hooks.compile_hook import check_compiler, networks
from ..engine.precision import warn_if_slow
from ..errors import InputError
from ..models._channels import image_channels
from ..models.decode_heads.join_conv import JoinConv2d
from .fast_convs import prepare_convs
from .folding import fold_batch_norms

#: Largest difference that folding may make, relative to the largest logit; rounding makes 1e-6.
TOLERANCE = 1e-3
#: How parts are compiled: their weights do not change any more.
COMPILE: dict[str, Any] = dict(options=dict(freezing=True))
#: Sides of the image that a model is observed with which does not say the size of its training.
SIDES = (128, 128)


def optimize_for_inference(
    model: BaseSegmentor,
    *,
    fuse: bool = True,
    channels_last: bool = True,
    dtype: torch.dtype | str | None = None,
    compile: bool = False,
) -> BaseSegmentor:
    """Make a trained model predict the same in less time, in place.

    It cannot be trained any further; whoever wants to keep it gives ``copy.deepcopy(model)``. By
    ``fuse`` and ``channels_last`` the logits change by no more than float32's rounding.

    Args:
        model: Any segmentor of mmseg, in evaluation mode.
        fuse: Whether to fold batch norms into the convolutions before them, see
            ``fold_batch_norms``. Defaults to True.
        channels_last: Whether to lay out memory as NHWC and, on a CPU, to prepare the weights of
            convolutions for it, see ``prepare_convs``. Such a model has to stay on the CPU, and
            cannot be exported. Defaults to True.
        dtype: ``'bfloat16'``, or ``'float16'`` on a GPU: what convolutions and products of matrices
            compute in, by autocast, with their weights stored in it. Images are normalised, and
            logits resized and compared, in float32. Defaults to None: float32 throughout.
        compile: Whether to compile backbones and heads, which takes its time at the first image,
            and again at the first of another size. Defaults to False.

    Returns:
        The model, whose attribute ``optimized`` says what was done. One that is optimised already
        stays as it is, with a warning.

    Raises:
        InputError: The model is in training mode, or ``dtype`` is another one, and nothing has been
            done; or folding has changed what the model computes.
        ConfigError: ``compile`` finds no compiler.
    """
    if hasattr(model, 'optimized'):
        warnings.warn(
            f'the model is optimised already ({model.optimized}) and stays as it is; for other '
            'options load it anew.',
            stacklevel=2,
        )
        return model
    if any(module.training for module in model.modules()):
        raise InputError(
            f'{type(model).__name__} is in training mode, where batch norms take the statistics of '
            'the batch; call model.eval() first.'
        )
    device = next(model.parameters()).device.type
    name = str(dtype).removeprefix('torch.')
    if dtype is not None and name != 'bfloat16' and (name != 'float16' or device == 'cpu'):
        raise InputError(f'dtype {name} on {device}: take bfloat16, or float16 on a GPU.')
    if compile:
        check_compiler('compile=True', torch.device(device), **COMPILE)
    model.requires_grad_(False)
    done = []
    shapes: dict[nn.Conv2d, torch.Size] = {}
    if fuse:
        done.append(_fuse(model, shapes))
    if channels_last:
        if not shapes:
            _run(model, shapes)
        model.to(memory_format=torch.channels_last)
        done.append('channels last')
    if dtype is not None:
        warn_if_slow(getattr(torch, name), device)
        _lower(model, getattr(torch, name))
    if channels_last and not compile:  # which prepares weights itself
        done.append(f'{prepare_convs(model, shapes)} convolutions prepared')
    if dtype is not None:
        _autocast(model, device, getattr(torch, name))
        done.append(name)
    if compile:
        for _, part in networks(model):
            part.forward = torch.compile(part.forward, **COMPILE)
        done.append('compiled')
    model.optimized = ', '.join(done) or 'nothing'
    return model


def _run(model: BaseSegmentor, shapes: dict[nn.Conv2d, torch.Size]) -> Tensor:
    """Logits of a random image of the size that a model is trained with, always the same.

    Into ``shapes`` goes what each convolution reads.
    """
    size = getattr(model.data_preprocessor, 'size', None) or model.test_cfg.get('crop_size', SIDES)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, image_channels(model), *size, generator=generator)
    metas = [dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), size)]

    def note(conv: nn.Conv2d, args: tuple[Tensor], _: Tensor) -> None:
        shapes[conv] = args[0].shape

    convs = [module for module in model.modules() if type(module) is nn.Conv2d]
    hooks = [conv.register_forward_hook(note) for conv in convs]
    # Convolutions of a GPU use TF32 by default, whose rounding is as large as the tolerance.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        logits = model.encode_decode(image.to(next(model.parameters())), metas)
    for hook in hooks:
        hook.remove()
    return logits


def _fuse(model: BaseSegmentor, shapes: dict[nn.Conv2d, torch.Size]) -> str:
    """Fold batch norms, and make sure that the logits are the same."""
    total = _count_norms(model)
    expected = fold_batch_norms(model, lambda: _run(model, shapes))
    found = _run(model, shapes)
    difference = float((found - expected).abs().max() / expected.abs().max())
    if difference > TOLERANCE:
        raise InputError(
            f'folding the batch norms of {type(model).__name__} changes its logits by '
            f'{difference:.1e} of the largest one; leave it out: fuse=False, or no --optimize.'
        )
    return f'{total - _count_norms(model)} of {total} batch norms folded'


def _count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


def _lower(model: BaseSegmentor, dtype: torch.dtype) -> None:
    """Store weights in what autocast would take them to in every call, but for classifiers."""
    for name, module in model.named_modules():
        # Other classes may compute with their weights, and not only convolve.
        is_plain = type(module).__module__.startswith(('torch.nn.', JoinConv2d.__module__))
        if is_plain and 'conv_seg' not in name.split('.'):
            if isinstance(module, _ConvNd):
                module.weight.copy_(_round(module.weight, dtype))
            if isinstance(module, (_ConvNd, nn.Linear)):
                module.to(dtype)


def _autocast(model: BaseSegmentor, device: str, dtype: torch.dtype) -> None:
    """Let the parts of a model run under autocast, but for its classifiers, up to its logits."""

    def run(part: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, dtype):
            return type(part).forward(part, *args, **kwargs)

    def run_head(head: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return tree_map(_float, run(head, *args, **kwargs))

    def classify(classifier: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(device, enabled=False):
            return type(classifier).forward(classifier, x.float())

    # A method goes along with a copy of the model, which a function would not.
    for name, part in networks(model):
        part.forward = MethodType(run_head if 'head' in name else run, part)
    for name, module in model.named_modules():
        if name.endswith('.conv_seg'):  # costs next to nothing, and rounded logits change labels
            module.forward = MethodType(classify, module)


def _round(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Round filters so that the sum of each stays: what one tap loses, the next one gets.

    Otherwise a filter answers an even image too strongly or too weakly, everywhere; of depthwise
    convolutions, whose few taps do not average that out, this changes most labels.
    """
    lost: Tensor | float = 0.0
    taps: list[Tensor] = []
    for tap in weight.flatten(2).unbind(2):
        taps.append((tap + lost).to(dtype))
        lost = tap + lost - taps[-1].to(weight.dtype)
    return torch.stack(taps, 2).view_as(weight)


def _float(value: Any) -> Any:
    """A tensor of a half precision in float32, and anything else as it is."""
    is_half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_half else value
