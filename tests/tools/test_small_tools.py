from __future__ import annotations

import hashlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.apis import init_model
from mmseg.registry import MODELS

from mmseg_coop.config import load_config
from mmseg_coop.datasets import CamVidDataset

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
PUBLISH = 'model_converters/publish_model.py'


def start(tool, *arguments):
    """Run a tool as a process."""
    command = [sys.executable, ROOT / 'tools' / tool, *map(str, arguments)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def call(monkeypatch, capfd):
    """Run a tool's main; returns its exit code (a message counts as 1) and its output."""

    def run(tool, *arguments):
        path = ROOT / 'tools' / tool
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.setattr(sys, 'argv', [str(path), *map(str, arguments)])
        capfd.readouterr()
        try:
            runpy.run_path(str(path), run_name='__main__')
        except SystemExit as error:
            output = capfd.readouterr()
            if isinstance(error.code, str):
                return 1, error.code
            return error.code, output.out or output.err.splitlines()[-1]
        return 0, capfd.readouterr().out

    return run


# publish_model


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A checkpoint as a training writes it."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(load_config(str(CONFIG)).model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    content = dict(
        meta=dict(
            cfg='secret = "/home/someone"',
            dataset_meta=dict(
                classes=CamVidDataset.METAINFO['classes'],
                palette=np.array(CamVidDataset.METAINFO['palette']),
            ),
        ),
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        message_hub={},
    )
    path = tmp_path_factory.mktemp('publish') / 'iter_1.pth'
    torch.save(content, path)
    return path, model.state_dict()


def check_published(folder, suffix, source):
    """The one file of the folder; it is smaller, and its name ends in its hash."""
    (file,) = folder.iterdir()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.name == f'pair-{digest[:8]}{suffix}'
    assert file.stat().st_size < 0.6 * source.stat().st_size
    assert b'someone' not in file.read_bytes()
    return file


def test_published_model_is_for_mmseg(checkpoint, tmp_path):
    source, weights = checkpoint
    text = start(PUBLISH, source, tmp_path / 'out/pair.pth')
    file = check_published(tmp_path / 'out', '.pth', source)
    assert f'{file}: ' in text
    assert '11 classes' in text
    content = torch.load(file, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    model = init_model(str(CONFIG), str(file), device='cpu')
    assert tuple(model.dataset_meta['classes']) == CamVidDataset.METAINFO['classes']
    assert model.dataset_meta['palette'] == CamVidDataset.METAINFO['palette']
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_published_safetensors(checkpoint, tmp_path, call):
    from safetensors import safe_open

    source, weights = checkpoint
    assert call(PUBLISH, source, tmp_path / 'out/pair.safetensors')[0] == 0
    file = check_published(tmp_path / 'out', '.safetensors', source)
    with safe_open(file, 'pt') as content:
        meta = json.loads(content.metadata()['dataset_meta'])
        assert tuple(meta['classes']) == CamVidDataset.METAINFO['classes']
        assert set(content.keys()) == set(weights)
        assert all(torch.equal(content.get_tensor(name), weights[name]) for name in weights)


class Planted:
    def __reduce__(self):
        return Path.touch, (Path('planted'),)


def test_publish_model_refuses_wrong_input(checkpoint, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    files = dict(
        planted=dict(state_dict=dict(weight=torch.ones(1)), optimizer=Planted()),
        diverged=dict(state_dict=dict(weight=torch.tensor([1, float('nan')]))),
        empty=dict(optimizer={}),
    )
    for name, content in files.items():
        torch.save(content, f'{name}.pth')
    for name, expected in (
        ('planted', 'refused'),
        ('diverged', "has weights that are infinite or no number, 'weight' first"),
        ('empty', 'holds no weights'),
        ('gone', "checkpoint 'gone.pth' does not exist"),
    ):
        code, text = call(PUBLISH, f'{name}.pth', 'out/pair.pth')
        assert code == 1
        assert expected in text
        assert '\n' not in text
        assert not list(tmp_path.glob('out/*'))
    assert not Path('planted').exists()
    code, text = call(PUBLISH, 'empty.pth', 'pair.onnx')
    assert code == 2
    assert "has to end in .pth or .safetensors, not 'pair.onnx'" in text


def test_publishing_twice_overwrites_nothing(checkpoint, tmp_path, call):
    source, _ = checkpoint
    target = tmp_path / 'out/pair.pth'
    assert call(PUBLISH, source, target)[0] == 0
    (file,) = target.parent.iterdir()
    file.write_text('mine')
    code, text = call(PUBLISH, source, target)
    assert code == 1
    assert 'exists; add --force' in text
    assert [path.read_text() for path in target.parent.iterdir()] == ['mine']
    assert call(PUBLISH, source, target, '--force')[0] == 0
    assert file.read_bytes() != b'mine'
