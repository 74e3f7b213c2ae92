"""Every family of configs trains and predicts in every precision."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS
from torch.nn.modules.dropout import _DropoutNd

from mmseg_coop.config import forget_pretrained
from mmseg_coop.models._channels import image_channels

pytestmark = pytest.mark.cuda
#: Precision and memory format; a CPU emulates half precision, which takes its time.
MODES = {
    'float32': (torch.float32, torch.contiguous_format),
    'float16': (torch.float16, torch.contiguous_format),
    'bfloat16, channels last': (torch.bfloat16, torch.channels_last),
}


def build(config, device):
    """The model of a config, whose losses in several precisions can be compared."""
    cfg = Config.fromfile(config)
    forget_pretrained(cfg.model)
    with torch.device(device):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).to(device)
    for name, parameter in model.named_parameters():
        if name.endswith('scale'):  # of an attention, which starts as the identity
            torch.nn.init.constant_(parameter, 0.5)
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0
    return cfg, model


def test_trains_and_predicts_in_every_precision(shipped, device, train_batch):
    cfg, model = build(shipped, device)
    size = tuple(cfg.model.data_preprocessor.size) if device.type == 'cuda' else (33, 33)
    batch = train_batch(size, num_classes=2, channels=image_channels(model))
    losses = {}
    for mode, (dtype, layout) in MODES.items():
        if device.type == 'cpu' and dtype == torch.float16:
            continue
        model.to(memory_format=layout).train().zero_grad()
        is_half = dtype != torch.float32
        with torch.autocast(device.type, dtype) if is_half else nullcontext():
            values = model(**model.data_preprocessor(batch, training=True), mode='loss')
            loss, _ = model.parse_losses(values)
        loss.backward()
        losses[mode] = loss.item()
        for name, parameter in model.named_parameters():
            assert parameter.device.type == device.type
            assert parameter.grad.isfinite().all(), (mode, name)
        with torch.autocast(device.type, dtype) if is_half else nullcontext():
            samples = model.eval().test_step(batch)
        for sample in samples:
            assert sample.seg_logits.data.isfinite().all(), mode
            assert sample.pred_sem_seg.data.shape == (1, *size)
    assert losses == pytest.approx(dict.fromkeys(losses, losses['float32']), rel=0.1)

    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    changed = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)
