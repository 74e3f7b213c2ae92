"""What is exported from a model on the device computes what the model does."""

from __future__ import annotations

import inspect

import pytest
import torch
from mmengine.config import Config

from mmseg_coop.apis import export, load_model
from tests.conftest import MINI

pytestmark = pytest.mark.cuda


@pytest.fixture
def deployed(device, untrained_mini):
    model = load_model(Config.fromfile(MINI), str(untrained_mini), device=device)
    return export.DeployedModel(model, model.output_names).to(device).eval().requires_grad_(False)


@pytest.fixture
def image(device):
    return 255 * torch.rand(1, 3, 64, 96, device=device)


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """TF32, which convolutions of a GPU use by default, would be all that is compared."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(
    'dynamic_shapes' not in inspect.signature(getattr(torch.export, 'export', print)).parameters,
    reason='torch.export of this torch takes no dynamic_shapes',
)
@torch.no_grad()
def test_program(device, deployed, image, tmp_path):
    if device.type == 'cpu':
        pytest.skip('tests/tools/test_deployment.py exports programs on the CPU')
    torch.export.save(torch.export.export(deployed, (image,)), tmp_path / 'program.pt2')
    assert_same(torch.export.load(tmp_path / 'program.pt2').module()(image), deployed(image))


@torch.no_grad()
def test_onnx(deployed, image, tmp_path):
    for package in ('onnx', 'onnxruntime'):
        pytest.importorskip(package, reason='it is what the export needs')
    export._write_onnx(deployed, image, tmp_path / 'model.onnx', 'trace', dynamic=True, opset=None)
    run = export.onnx_runner(tmp_path / 'model.onnx', deployed.outputs)
    assert_same([torch.from_numpy(x) for x in run(image.cpu().numpy())], deployed(image))
