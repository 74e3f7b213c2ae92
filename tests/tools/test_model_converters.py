"""Weights of other projects, and checkpoints that are handed on."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from mmseg.apis import init_model
from mmseg.models.backbones import MobileNetV2, TIMMBackbone
from PIL import Image
from torch import nn
from torchvision.models import mobilenet_v2

from mmseg_coop.datasets import CamVidDataset
from mmseg_coop.models.backbones.xception import convert_timm_state_dict
from tests.apis.test_folding import randomize
from tests.conftest import MINI

MOBILENET = 'torchvision_mobilenet_v2'


@pytest.fixture
def run(run_tool):
    """Run a converter."""
    return lambda name, *words, **code: run_tool(
        f'tools/model_converters/{name}.py', *words, **code
    )


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    (folder / 'city').mkdir()
    for i in range(4):
        # Large patches, so that the deep layers still see something vary.
        patches = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(patches).resize((96, 64)).save(folder / 'city' / f'{i}.png')
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.fixture(scope='module')
def folded(tmp_path_factory):
    """MobileNetV2 in half precision with batch norm that is an identity plus a bias."""
    torch.manual_seed(0)
    model = mobilenet_v2().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.2)
    model.half()
    path = tmp_path_factory.mktemp('weights') / 'folded.pth'
    torch.save(model.state_dict(), path)
    return model.float(), path


def xception_state_dict():
    """All names of timm, each with a few numbers: the shapes are those of test_xception.py."""
    with torch.device('meta'):
        names = timm.create_model('xception41').state_dict()
    return {name: torch.rand(2) for name in names}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_timm_xception(tmp_path, suffix, run):
    state_dict = xception_state_dict()
    source, destination = tmp_path / f'source{suffix}', tmp_path / 'new' / 'xception41.pth'
    if suffix == '.pth':
        torch.save(dict(state_dict=state_dict, epoch=3), source)
    else:
        safetensors.torch.save_file(state_dict, source)
    stdout = run('timm_xception', source, destination)
    converted, expected = load(destination), convert_timm_state_dict(state_dict)
    assert list(converted) == list(expected)
    assert all(torch.equal(converted[key], expected[key]) for key in expected)
    assert f'{len(state_dict)} tensors read, 2 left out' in stdout
    assert f'{len(expected)} tensors written' in stdout
    assert [path.name for path in destination.parent.iterdir()] == ['xception41.pth']


def test_mobilenet_computes_the_same(tmp_path, run):
    reference = mobilenet_v2().eval()
    randomize(reference)
    torch.save(reference.state_dict(), tmp_path / 'source.pth')
    stdout = run(MOBILENET, tmp_path / 'source.pth', tmp_path / 'converted.pth')
    assert '314 tensors read, 8 left out' in stdout
    assert '306 tensors written, 1.84 M values' in stdout
    model = MobileNetV2(out_indices=(1, 2, 4, 6))
    model.load_state_dict(load(tmp_path / 'converted.pth'))
    model.eval()
    x = torch.randn(2, 3, 65, 64)
    with torch.no_grad():
        for level, end in zip(model(x), (3, 6, 13, 17), strict=True):
            torch.testing.assert_close(level, reference.features[: end + 1](x))


def test_half_precision_becomes_float32(tmp_path, folded, run):
    model, source = folded
    run(MOBILENET, source, tmp_path / 'converted.pth')
    converted = load(tmp_path / 'converted.pth')
    kinds = {v.dtype for k, v in converted.items() if not k.endswith('num_batches_tracked')}
    assert kinds == {torch.float32}
    assert torch.equal(converted['conv1.conv.weight'], model.features[0][0].weight)


def test_restored_batch_norm(tmp_path, folded, images, run):
    reference, source = folded
    destination = tmp_path / 'restored.pth'
    mean, std = (120, 110, 100), (60, 61, 62)
    options = ('--restore-bn', images, '--mean', *mean, '--std', *std)
    stdout = run(MOBILENET, source, destination, *options)
    assert f'batch norm restored from 4 images of {images}' in stdout
    converted = load(destination)
    model = MobileNetV2(out_indices=(6,))
    model.load_state_dict(converted)
    arrays = np.stack([np.asarray(Image.open(path)) for path in sorted(images.rglob('*.png'))])
    x = torch.from_numpy((arrays - np.array(mean)) / np.array(std)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = reference.features[:18](x)
        model.eval()
        evaluated = model(x)
        # In training the statistics are those of the very images that were measured.
        model.train()
        trained = model(x)
        unrestored = copy.deepcopy(reference).train().features[:18](x)
        first = reference.features[0][0](x)
    assert (evaluated - expected).norm() < 1e-4 * expected.norm()
    assert (trained - expected).norm() < 1e-2 * expected.norm()
    assert (unrestored - expected).norm() > 0.5 * expected.norm()
    mean, var = first.mean((0, 2, 3)), first.var((0, 2, 3), correction=0)
    batch_norm = reference.features[0][1]
    weight, bias = (var + batch_norm.eps).sqrt(), batch_norm.bias + mean
    for name, value in dict(running_mean=mean, running_var=var, weight=weight, bias=bias).items():
        torch.testing.assert_close(converted[f'conv1.bn.{name}'], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('folder', 'options', 'code', 'message'),
    [
        ('empty', [], 1, 'no image (.jpg, .jpeg, .png) below '),
        ('images', ['--std', '1', '0', '1'], 2, '--std must be positive, not [1.0, 0.0, 1.0]'),
        ('images', ['--max-images', '0'], 2, '--max-images: has to be at least 1, not 0'),
        ('damaged', [], 1, 'a.png is no readable image; remove or replace it'),
    ],
)
def test_images_that_cannot_restore(tmp_path, folded, images, run, folder, options, code, message):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'damaged').mkdir()
    (tmp_path / 'damaged/a.png').write_bytes(b'no image')
    folder = images if folder == 'images' else tmp_path / folder
    words = (folded[1], tmp_path / 'new.pth', '--restore-bn', folder, *options)
    assert message in run(MOBILENET, *words, code=code)
    assert not (tmp_path / 'new.pth').exists()


def lite0_state_dict(model):
    """The state dict of a timm EfficientNet-Lite0 under EfficientNet-PyTorch's names.

    Written down block by block, apart from the converter's own table.
    """
    first = model.blocks[0][0]
    modules = {
        '_conv_stem': model.conv_stem,
        '_bn0': model.bn1,
        '_blocks.0._depthwise_conv': first.conv_dw,
        '_blocks.0._bn1': first.bn1,
        '_blocks.0._project_conv': first.conv_pw,
        '_blocks.0._bn2': first.bn2,
        '_conv_head': model.conv_head,
        '_bn1': model.bn2,
        '_fc': model.classifier,
    }
    for number, block in enumerate((b for stage in model.blocks[1:] for b in stage), 1):
        modules |= {
            f'_blocks.{number}._expand_conv': block.conv_pw,
            f'_blocks.{number}._bn0': block.bn1,
            f'_blocks.{number}._depthwise_conv': block.conv_dw,
            f'_blocks.{number}._bn1': block.bn2,
            f'_blocks.{number}._project_conv': block.conv_pwl,
            f'_blocks.{number}._bn2': block.bn3,
        }
    return {
        f'{name}.{key}': value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize('model_name', ['efficientnet_lite0', 'tf_efficientnet_lite0'])
def test_efficientnet_lite0_computes_the_same(tmp_path, model_name, run):
    reference = timm.create_model(model_name).eval()
    randomize(reference)
    torch.save(lite0_state_dict(reference), tmp_path / 'source.pth')
    stdout = run('efficientnet_lite0', tmp_path / 'source.pth', tmp_path / 'new.pth')
    assert '296 tensors read, 8 left out' in stdout
    assert '288 tensors written' in stdout
    backbone = TIMMBackbone(model_name, features_only=True, pretrained=False).eval()
    backbone.load_state_dict(load(tmp_path / 'new.pth'))
    x = torch.randn(1, 3, 64, 64)
    stages = []
    for index in (0, 1, 2, 4, 6):
        reference.blocks[index].register_forward_hook(lambda m, i, out: stages.append(out))
    with torch.no_grad():
        reference(x)
        features = backbone(x)
    for feature, stage in zip(features, stages, strict=True):
        torch.testing.assert_close(feature, stage)


class RunsOnLoading:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def xception_without_a_tensor():
    state_dict = xception_state_dict()
    del state_dict['stem.0.bn.bias']
    return state_dict


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        (MOBILENET, None, "source.pth' does not exist"),
        (MOBILENET, lambda: 'text', 'source.pth is damaged or no checkpoint'),
        (MOBILENET, lambda: [torch.zeros(1)], 'source.pth'),
        (MOBILENET, lambda: {'meta': 1}, "source.pth' holds no weights"),
        (MOBILENET, lambda: {'features.0.0.weight': RunsOnLoading(Path('planted'))}, 'refused'),
        (MOBILENET, lambda: {'other': torch.zeros(1)}, "'other' is no name of torchvision's"),
        (MOBILENET, lambda: mobilenet_v2(width_mult=0.5).state_dict(), 'torch.Size([16, 3, 3, 3])'),
        ('efficientnet_lite0', lambda: mobilenet_v2().state_dict(), "'features.0.0.weight' is no"),
        ('timm_xception', xception_without_a_tensor, 'missing keys: stem.0.bn.bias'),
    ],
)
def test_a_source_that_is_not_converted_leaves_the_old_file(
    tmp_path, monkeypatch, run, name, content, message
):
    monkeypatch.chdir(tmp_path)
    Path('converted.pth').write_text('precious')
    if content is not None:
        what = content()
        Path('source.pth').write_text(what) if what == 'text' else torch.save(what, 'source.pth')
    error = run(name, 'source.pth', 'converted.pth', '--force', code=1)
    assert error.startswith('error: ')
    assert message in error
    assert Path('converted.pth').read_text() == 'precious'
    assert {path.name for path in tmp_path.iterdir()} <= {'source.pth', 'converted.pth'}


def test_a_destination_is_a_new_pth_file_or_replaced_by_force(tmp_path, folded, run):
    destination = tmp_path / 'converted.pth'
    destination.write_text('precious')
    error = run(MOBILENET, folded[1], destination, code=1)
    assert f"{destination}' exists; name another place, or add --force" in error
    assert destination.read_text() == 'precious'
    run(MOBILENET, folded[1], destination, '--force')
    assert 'conv1.conv.weight' in load(destination)
    assert list(tmp_path.iterdir()) == [destination]
    error = run(MOBILENET, folded[1], destination.with_suffix('.safetensors'), code=1)
    assert "has to end in .pth, not '" in error


# publish_model.py


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, untrained_mini):
    """A checkpoint with what a training writes, and its weights."""
    classes, palette = CamVidDataset.METAINFO['classes'], CamVidDataset.METAINFO['palette']
    dataset_meta = dict(classes=classes, palette=np.array(palette))
    meta = dict(cfg='secret = "/home/someone"', dataset_meta=dataset_meta)
    weights = torch.load(untrained_mini, weights_only=False)['state_dict']
    momentum = {name: torch.ones_like(value) for name, value in weights.items()}
    file = tmp_path_factory.mktemp('publish') / 'iter_1.pth'
    torch.save(dict(state_dict=weights, meta=meta, optimizer=momentum, message_hub={}), file)
    return file, weights


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_published_weights_and_classes(checkpoint, tmp_path, run, suffix):
    source, weights = checkpoint
    text = run('publish_model', source, tmp_path / f'out/pair{suffix}')
    (file,) = (tmp_path / 'out').iterdir()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.name == f'pair-{digest[:8]}{suffix}'
    assert file.stat().st_size < 0.6 * source.stat().st_size
    assert b'someone' not in file.read_bytes()
    assert f'{file}: ' in text
    assert '11 classes' in text
    model = init_model(str(MINI), str(file), device='cpu')
    meta, published = model.dataset_meta, model.state_dict()
    if suffix == '.pth':
        assert set(load(file)) == {'meta', 'state_dict'}
    else:
        with safetensors.safe_open(file, 'pt') as content:
            assert json.loads(content.metadata()['dataset_meta']) == meta
            assert {*content.keys()} == {*weights}
    assert tuple(meta['classes']) == CamVidDataset.METAINFO['classes']
    assert meta['palette'] == CamVidDataset.METAINFO['palette']
    assert published.keys() == weights.keys()
    assert all(torch.equal(published[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (dict(state_dict={}, optimizer=RunsOnLoading(Path('planted'))), 'refused'),
        (dict(state_dict=dict(weight=torch.tensor(float('nan')))), "no number, 'weight' first"),
        (dict(optimizer={}), 'holds no weights'),
        (None, "checkpoint 'a.pth' does not exist"),
    ],
)
def test_publish_model_refuses_wrong_input(tmp_path, monkeypatch, run, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        torch.save(content, 'a.pth')
    assert message in run('publish_model', 'a.pth', 'out/pair.pth', code=1)
    assert {path.name for path in tmp_path.iterdir()} <= {'a.pth'}
    error = run('publish_model', 'a.pth', 'pair.onnx', code=1)
    assert "has to end in .pth or .safetensors, not 'pair.onnx'" in error


def test_publishing_twice_overwrites_nothing(checkpoint, tmp_path, run):
    source, target = checkpoint[0], tmp_path / 'out/pair.pth'
    run('publish_model', source, target)
    (file,) = target.parent.iterdir()
    file.write_text('mine')
    error = run('publish_model', source, target, code=1)
    assert 'exists; name another place, or add --force' in error
    assert [path.read_text() for path in target.parent.iterdir()] == ['mine']
    run('publish_model', source, target, '--force')
    assert file.read_bytes() != b'mine'
