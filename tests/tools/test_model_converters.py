from __future__ import annotations

import copy
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
from mmseg.models.backbones import MobileNetV2, TIMMBackbone
from PIL import Image
from torch import nn
from torchvision.models import mobilenet_v2

from mmseg_coop.models.backbones.xception import convert_timm_state_dict

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools' / 'model_converters'


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(tool, *args):
    """Run a converter as a user does."""
    result = subprocess.run(
        [sys.executable, TOOLS / f'{tool}.py', *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        check=False,
    )
    return Result(result.returncode, result.stdout, result.stderr)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run a converter in this process, which spares the seconds that its imports take."""
    monkeypatch.syspath_prepend(TOOLS)

    def run_script(tool, *args):
        monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
        returncode, message = 0, ''
        try:
            runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')
        except SystemExit as error:  # what the interpreter does with it
            if error.code:
                returncode, message = (1, f'{error.code}\n')
        captured = capsys.readouterr()
        return Result(returncode, captured.out, captured.err + message)

    return run_script


def assert_success(result):
    assert result.returncode == 0, result.stderr
    return result.stdout


def assert_one_line_error(result, *parts):
    assert result.returncode in (1, 2)
    assert 'Traceback' not in result.stderr
    # Libraries may warn while they are imported.
    (error,) = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert result.stderr.endswith(f'{error}\n')
    for part in parts:
        assert part in error


def load(path):
    return torch.load(path, weights_only=True)


def randomize_batch_norm(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


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


def read_images(folder, mean=(127.5,) * 3, std=(127.5,) * 3):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    arrays = [np.asarray(Image.open(path)) for path in sorted(folder.rglob('*.png'))]
    return (torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() - mean) / std


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


class TestTimmXception:
    @pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
    def test_converts(self, tmp_path, suffix, run_here):
        state_dict = timm.create_model('xception41').state_dict()
        source, destination = tmp_path / f'source{suffix}', tmp_path / 'new' / 'xception41.pth'
        if suffix == '.pth':
            torch.save(dict(state_dict=state_dict, epoch=3), source)
        else:
            from safetensors.torch import save_file

            save_file(state_dict, source)
        runner = run if suffix == '.pth' else run_here
        stdout = assert_success(runner('timm_xception', source, destination))
        converted, expected = load(destination), convert_timm_state_dict(state_dict)
        assert list(converted) == list(expected)
        assert all(torch.equal(converted[key], expected[key]) for key in expected)
        assert f'{len(state_dict)} tensors read, 2 left out' in stdout
        assert f'{len(expected)} tensors written' in stdout
        assert [path.name for path in destination.parent.iterdir()] == ['xception41.pth']

    def test_names_what_does_not_fit(self, tmp_path, run_here):
        with torch.device('meta'):
            names = timm.create_model('xception41').state_dict()
        del names['stem.0.bn.bias']
        torch.save({name: torch.zeros(1) for name in names}, tmp_path / 'source.pth')
        result = run_here('timm_xception', tmp_path / 'source.pth', tmp_path / 'new.pth')
        assert_one_line_error(result, 'source.pth', 'missing keys: stem.0.bn.bias')
        assert not (tmp_path / 'new.pth').exists()


class TestTorchvisionMobileNetV2:
    TOOL = 'torchvision_mobilenet_v2'

    def test_computes_the_same(self, tmp_path, run_here):
        reference = mobilenet_v2().eval()
        randomize_batch_norm(reference)
        torch.save(reference.state_dict(), tmp_path / 'source.pth')
        result = run_here(self.TOOL, tmp_path / 'source.pth', tmp_path / 'converted.pth')
        stdout = assert_success(result)
        assert '314 tensors read, 8 left out' in stdout
        assert '306 tensors written, 1.84 M values' in stdout
        model = MobileNetV2(out_indices=(1, 2, 4, 6))
        model.load_state_dict(load(tmp_path / 'converted.pth'))
        model.eval()
        x = torch.randn(2, 3, 65, 64)
        with torch.no_grad():
            for level, end in zip(model(x), (3, 6, 13, 17), strict=True):
                torch.testing.assert_close(level, reference.features[: end + 1](x))

    def test_half_precision_becomes_float32(self, tmp_path, folded, run_here):
        model, source = folded
        assert_success(run_here(self.TOOL, source, tmp_path / 'converted.pth'))
        converted = load(tmp_path / 'converted.pth')
        kinds = {v.dtype for k, v in converted.items() if not k.endswith('num_batches_tracked')}
        assert kinds == {torch.float32}
        assert torch.equal(converted['conv1.conv.weight'], model.features[0][0].weight)

    def test_restored_batch_norm(self, tmp_path, folded, images):
        reference, source = folded
        destination = tmp_path / 'restored.pth'
        result = run(
            *(self.TOOL, source, destination, '--restore-bn', images),
            *('--mean', 120, 110, 100, '--std', 60, 61, 62),
        )
        assert f'batch norm restored from 4 images of {images}' in assert_success(result)
        model = MobileNetV2(out_indices=(6,))
        model.load_state_dict(load(destination))
        x = read_images(images, (120, 110, 100), (60, 61, 62))
        with torch.no_grad():
            expected = reference.features[:18](x)
            model.eval()
            evaluated = model(x)
            # In training the statistics are those of the very images that were measured.
            model.train()
            trained = model(x)
            unrestored = copy.deepcopy(reference).train().features[:18](x)
        assert (evaluated - expected).norm() < 1e-4 * expected.norm()
        assert (trained - expected).norm() < 1e-2 * expected.norm()
        assert (unrestored - expected).norm() > 0.5 * expected.norm()

    def test_restored_statistics(self, tmp_path, folded, images, run_here):
        reference, source = folded
        destination = tmp_path / 'restored.pth'
        assert_success(run_here(self.TOOL, source, destination, '--restore-bn', images))
        with torch.no_grad():
            out = reference.features[0][0](read_images(images))
        mean, var = out.mean((0, 2, 3)), out.var((0, 2, 3), correction=0)
        batch_norm = reference.features[0][1]
        converted = load(destination)
        for name, expected in dict(
            running_mean=mean,
            running_var=var,
            weight=(var + batch_norm.eps).sqrt(),
            bias=batch_norm.bias + mean,
        ).items():
            restored = converted[f'conv1.bn.{name}']
            torch.testing.assert_close(restored, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ('options', 'parts'),
        [
            (['--restore-bn', 'EMPTY'], ['no image', '.jpg']),
            (['--restore-bn', 'IMAGES', '--std', '1', '0', '1'], ['--std', '[1.0, 0.0, 1.0]']),
            (['--restore-bn', 'IMAGES', '--max-images', '0'], ['--max-images', 'got 0']),
        ],
    )
    def test_wrong_options(self, tmp_path, folded, images, run_here, options, parts):
        (tmp_path / 'empty').mkdir()
        folders = dict(EMPTY=tmp_path / 'empty', IMAGES=images)
        options = [folders.get(option, option) for option in options]
        result = run_here(self.TOOL, folded[1], tmp_path / 'new.pth', *options)
        assert_one_line_error(result, *parts)
        assert not (tmp_path / 'new.pth').exists()

    def test_damaged_image(self, tmp_path, folded, run_here):
        (tmp_path / 'images').mkdir()
        (tmp_path / 'images' / 'a.png').write_bytes(b'no image')
        options = ['--restore-bn', tmp_path / 'images']
        result = run_here(self.TOOL, folded[1], tmp_path / 'new.pth', *options)
        assert_one_line_error(result, 'a.png', 'no readable image')

    def test_other_width_is_refused(self, tmp_path, run_here):
        torch.save(mobilenet_v2(width_mult=0.5).state_dict(), tmp_path / 'source.pth')
        result = run_here(self.TOOL, tmp_path / 'source.pth', tmp_path / 'converted.pth')
        assert_one_line_error(result, 'conv1.conv.weight (16, 3, 3, 3) instead of (32, 3, 3, 3)')


def lite0_state_dict(model):
    """The state dict of a timm EfficientNet-Lite0 under EfficientNet-PyTorch's names.

    Written down block by block, apart from the converter's own table.
    """
    names = {}
    first = model.blocks[0][0]
    names['_blocks.0'] = dict(
        _depthwise_conv=first.conv_dw, _bn1=first.bn1, _project_conv=first.conv_pw, _bn2=first.bn2
    )
    for number, block in enumerate((b for stage in model.blocks[1:] for b in stage), 1):
        names[f'_blocks.{number}'] = dict(
            _expand_conv=block.conv_pw,
            _bn0=block.bn1,
            _depthwise_conv=block.conv_dw,
            _bn1=block.bn2,
            _project_conv=block.conv_pwl,
            _bn2=block.bn3,
        )
    modules = {
        f'{block}.{name}': m for block, layers in names.items() for name, m in layers.items()
    }
    modules |= dict(
        _conv_stem=model.conv_stem,
        _bn0=model.bn1,
        _conv_head=model.conv_head,
        _bn1=model.bn2,
        _fc=model.classifier,
    )
    return {
        f'{name}.{key}': value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


class TestEfficientNetLite0:
    @pytest.mark.parametrize('model_name', ['efficientnet_lite0', 'tf_efficientnet_lite0'])
    def test_computes_the_same(self, tmp_path, model_name, run_here):
        reference = timm.create_model(model_name).eval()
        randomize_batch_norm(reference)
        torch.save(lite0_state_dict(reference), tmp_path / 'source.pth')
        runner = run if model_name == 'efficientnet_lite0' else run_here
        result = runner('efficientnet_lite0', tmp_path / 'source.pth', tmp_path / 'new.pth')
        stdout = assert_success(result)
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

    def test_another_network_is_refused(self, tmp_path, folded, run_here):
        result = run_here('efficientnet_lite0', folded[1], tmp_path / 'new.pth')
        assert_one_line_error(result, 'features.0.0.weight', 'EfficientNet-Lite0')
        assert not (tmp_path / 'new.pth').exists()


class RunsOnLoading:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class TestFiles:
    TOOL = 'torchvision_mobilenet_v2'

    def test_overwrites_only_when_forced(self, tmp_path, folded, run_here):
        destination = tmp_path / 'converted.pth'
        destination.write_text('precious')
        result = run(self.TOOL, folded[1], destination)
        assert_one_line_error(result, str(destination), '--force')
        assert destination.read_text() == 'precious'
        assert_success(run_here(self.TOOL, folded[1], destination, '--force'))
        assert 'conv1.conv.weight' in load(destination)
        assert list(tmp_path.iterdir()) == [destination]

    def test_failed_conversion_keeps_the_old_file(self, tmp_path, run_here):
        destination = tmp_path / 'converted.pth'
        destination.write_text('precious')
        torch.save({'other': torch.zeros(1)}, tmp_path / 'source.pth')
        result = run_here(self.TOOL, tmp_path / 'source.pth', destination, '--force')
        assert_one_line_error(result, "'other'")
        assert destination.read_text() == 'precious'

    def test_code_in_a_file_is_not_run(self, tmp_path, run_here):
        planted = tmp_path / 'planted'
        torch.save({'features.0.0.weight': RunsOnLoading(planted)}, tmp_path / 'source.pth')
        result = run_here(self.TOOL, tmp_path / 'source.pth', tmp_path / 'converted.pth')
        assert_one_line_error(result, 'source.pth', 'more than tensors')
        assert not planted.exists()

    @pytest.mark.parametrize(
        ('content', 'message'),
        [
            (None, 'is not a file'),
            ('text', 'cannot read'),
            ([torch.zeros(1)], 'holds no state dict'),
            ({'meta': 1}, 'holds no state dict'),
        ],
    )
    def test_unreadable_source(self, tmp_path, content, message, run_here):
        source = tmp_path / 'source.pth'
        if content == 'text':
            source.write_text('text')
        elif content is not None:
            torch.save(content, source)
        assert_one_line_error(
            run_here(self.TOOL, source, tmp_path / 'new.pth'), str(source), message
        )

    def test_destination_must_be_pth(self, tmp_path, folded, run_here):
        result = run_here(self.TOOL, folded[1], tmp_path / 'converted.safetensors')
        assert_one_line_error(result, 'converted.safetensors', '.pth')
