"""Every shipped config on an imitated GPU: without one, a tensor left on the CPU is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.utils import digit_version
from mmseg.registry import MODELS
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_coop import CoopModel
from mmseg_coop.apis.export import DeployedModel
from mmseg_coop.config import forget_pretrained
from mmseg_coop.models._channels import image_channels, skip_pointwise
from tests.cuda.conftest import CONFIGS, MINI

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.4'),
    reason='this torch needs a driver to imitate a GPU',
)
SLOW = pytest.mark.slow
QUICK = ('mini_1xb8-200_camvid', 'mini_1xb8-200_mfnet', 'dpanet_mnv2')


def build(config):
    """The model of a config, all of it on the imitated GPU, and the size of its crops."""
    cfg = Config.fromfile(config)
    forget_pretrained(cfg.model)
    with torch.device('cuda'):
        model = MODELS.build(cfg.model)
    model.data_preprocessor.to('cuda')
    model.cfg = cfg
    model.test_cfg.mode = 'whole'  # sliding looks at values
    return skip_pointwise(model), tuple(cfg.model.data_preprocessor.size)


@pytest.fixture
def imitated():
    """Tensors have a device and a shape but no values, so that full crops take no time."""
    with FakeTensorMode(shape_env=ShapeEnv()):
        yield


class NoCopies(TorchDispatchMode):
    """Refuses copies from the CPU, which would wait for each until the GPU has caught up."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        copies = function is torch.ops.aten._to_copy.default
        assert not copies or args[0].device.type == 'cuda'
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    'config',
    [
        pytest.param(c, id=c.stem, marks=[] if any(n in c.stem for n in QUICK) else SLOW)
        for c in CONFIGS
    ],
)
@torch.no_grad()
def test_losses_and_predictions_of_full_crops_are_on_the_device(config, imitated, train_batch):
    model, size = build(config)
    raw = train_batch(size, num_classes=2, channels=image_channels(model))
    data = model.data_preprocessor(raw, training=True)
    with NoCopies():
        losses = model(**data, mode='loss')
    samples = model.eval().test_step(raw)
    assert {value.device.type for value in losses.values()} == {'cuda'}
    assert len(samples) == 2
    for element in (element for sample in samples for element in sample.values()):
        for value in element.values():
            assert value.device.type == 'cuda'
            assert value.shape[-2:] == size


def test_a_tensor_left_on_the_cpu_is_found(imitated, train_batch):
    """What the tests above rely on."""
    model, size = build(MINI)
    model.backbone.register_forward_pre_hook(lambda _, images: images[0] + torch.ones(3, 1, 1))
    with pytest.raises(RuntimeError, match=r'same device|different devices'):
        model.test_step(train_batch(size, num_classes=2))


@torch.no_grad()
def test_a_deployed_model_is_on_the_device_of_its_model(imitated):
    model, size = build(MINI)
    deployed = DeployedModel(model.eval(), model.output_names)
    assert {value.device.type for value in deployed.buffers()} == {'cuda'}
    logits = deployed(torch.rand(1, 3, *size, device='cuda'))
    assert [value.device.type for value in logits] == ['cuda'] * 3


@torch.no_grad()
def test_images_and_labels_of_a_coop_model_may_stay_on_the_cpu(
    imitated, coop_model_cfg, monkeypatch
):
    monkeypatch.setattr(CoopModel, '_check_labels', lambda *_: None)  # looks at values
    module = 'mmseg_coop.apis.coop_model'
    monkeypatch.setattr(f'{module}.label_maps', lambda sample, **_: [sample.pred_sem_seg.data])
    with torch.device('cuda'):
        model = skip_pointwise(CoopModel(config=coop_model_cfg(dict(net='mobilenet'))))
    x, y = torch.zeros(2, 3, 64, 48, dtype=torch.uint8), torch.zeros(2, 64, 48, dtype=torch.long)
    found = [model.loss(x, y), model(x)['net'], *model.predict(np.zeros((64, 48, 3), np.uint8))]
    assert [value.device.type for value in found] == ['cuda'] * 3
