from __future__ import annotations

import hashlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.visualization import Visualizer
from mmseg.apis import init_model
from mmseg.registry import MODELS
from PIL import Image

from mmseg_coop.config import load_config
from mmseg_coop.datasets import CamVidDataset

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
PAIR = ROOT / 'configs/cross_coop/cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
NO_C1 = ROOT / 'configs/cross_coop/cross-coop-no-c1_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
PRINT = 'misc/print_config.py'
BROWSE = 'analysis_tools/browse_dataset.py'
PUBLISH = 'model_converters/publish_model.py'
RED = (254, 0, 0)


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


# print_config


def test_printed_config_is_the_resolved_one(tmp_path):
    text = start(PRINT, CONFIG, '--cfg-options', 'model.decode_head.topology=one_way')
    printed = tmp_path / 'printed.py'
    printed.write_text(text)
    expected = Config.fromfile(CONFIG)
    expected.model.decode_head.topology = 'one_way'
    assert Config.fromfile(printed).to_dict() == expected.to_dict()


@pytest.mark.parametrize('suffix', ['.py', '.json', '.yml'])
def test_written_config_is_the_resolved_one(call, tmp_path, suffix):
    path = tmp_path / 'new' / f'config{suffix}'
    assert call(PRINT, CONFIG, '--out', path)[0] == 0
    # JSON has no tuples.
    written, expected = (
        json.dumps(Config.fromfile(file).to_dict(), sort_keys=True) for file in (path, CONFIG)
    )
    assert written == expected
    code, text = call(PRINT, CONFIG, '--out', path)
    assert code == 1
    assert 'exists; add --force' in text
    assert call(PRINT, CONFIG, '--out', path, '--force')[0] == 0


def test_part_of_a_config(call):
    assert call(PRINT, PAIR, '--key', 'model.decode_head.topology') == (0, "topology = 'cross'\n\n")
    code, text = call(PRINT, PAIR, '--key', 'train_pipeline.0')
    assert code == 0
    assert "part = dict(type='LoadSegImage')" in text


def test_difference_of_two_configs(call):
    code, text = call(PRINT, PAIR, '--diff', NO_C1)
    assert code == 1
    changed = [line for line in text.splitlines() if line[0] in '+-' and line[:3] not in '+++---']
    assert changed == ["-            'input',"]
    assert call(PRINT, PAIR, '--diff', PAIR) == (0, 'the configs do not differ\n')


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (('gone.py',), 1, "config 'gone.py' does not exist"),
        ((PAIR, '--key', 'model.head'), 1, "--key model.head: 'model' has no 'head', only type,"),
        ((PAIR, '--key', 'model.type.x'), 1, "'model.type' is the value 'CrossCoopEncoderDecoder'"),
        ((PAIR, '--out', 'config.txt'), 2, "file, not 'config.txt'"),
        ((PAIR, '--out', 'config.py', '--key', 'model'), 2, 'leave out --key and --diff'),
    ],
)
def test_print_config_refuses_wrong_input(call, arguments, code, message):
    got, text = call(PRINT, *arguments)
    assert got == code
    assert message in text


@pytest.mark.parametrize('backend', ['TensorboardVisBackend', 'WandbVisBackend'])
def test_other_backends_are_one_line(call, tmp_path, backend):
    """As an option of the command line, and as a line of a config that inherits."""
    option = f'visualizer.vis_backends.0.type={backend}'
    code, text = call(PRINT, CONFIG, '--key', 'visualizer', '--cfg-options', option)
    assert code == 0
    assert f"dict(type='{backend}')" in text
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(CONFIG)!r}\n'
        f"visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='{backend}')])\n"
    )
    cfg = load_config(str(config))
    assert [b.type for b in cfg.visualizer.vis_backends] == ['LocalVisBackend', backend]
    init_default_scope('mmseg')
    from mmseg.registry import VISUALIZERS

    visualizer: Visualizer = VISUALIZERS.build({**cfg.visualizer, 'save_dir': str(tmp_path)})
    assert [type(b).__name__ for b in visualizer._vis_backends.values()] == [
        'LocalVisBackend',
        backend,
    ]


# browse_dataset


@pytest.fixture
def data_root(tmp_path):
    """Two red images of 16 x 24 pixels, road on the left half and sky on the right."""
    root = tmp_path / 'data'
    for kind in ('img_dir', 'ann_dir'):
        (root / kind / 'train').mkdir(parents=True)
    label = np.zeros((16, 24), np.uint8)
    label[:, :12] = 3
    label[:4] = 255
    for index in range(2):
        image = np.full((16, 24, 3), RED, np.uint8)
        Image.fromarray(image).save(root / f'img_dir/train/{index}.jpg', quality=100)
        Image.fromarray(label).save(root / f'ann_dir/train/{index}.png')
    return root


def plain_pipeline(root, **flip):
    """Options that leave only the loading, and a flip."""
    steps = 'train_dataloader.dataset.pipeline'
    return [
        '--cfg-options',
        f'train_dataloader.dataset.data_root={root}',
        f'{steps}.2.scale=(24,16)',
        f'{steps}.2.ratio_range=(1.0,1.0)',
        f'{steps}.3.crop_size=(16,24)',
        f'{steps}.3.cat_max_ratio=1.0',
        f'{steps}.4.prob={flip.get("flip", 0.0)}',
    ]


def test_pictures_show_what_the_pipeline_feeds(data_root, tmp_path):
    out = tmp_path / 'pictures'
    text = start(
        BROWSE, CONFIG, '--out-dir', out, '--number', 5, *plain_pipeline(data_root, flip=1.0)
    )
    assert sorted(p.name for p in out.iterdir()) == ['000000_0.png', '000001_1.png']
    assert '000001_1.png: 16x24 uint8, flipped, sky 37.5 %, road 37.5 %, ignored 25.0 %' in text
    picture = cv2.imread(str(out / '000000_0.png'))[..., ::-1].astype(int)
    # Two panels of 15 times the size under titles of 22 pixels, 4 pixels apart.
    image, labels = picture[22:262, :360], picture[22:262, 364:724]
    np.testing.assert_allclose(image[120, 180], RED, atol=3)
    palette = CamVidDataset.METAINFO['palette']
    for column, name in ((90, 'sky'), (270, 'road')):  # flipped
        color = palette[CamVidDataset.METAINFO['classes'].index(name)]
        strength = labels[200, column, 1:] / color[1:]  # red is the image's
        assert strength.min() > 0.3
        assert np.ptp(strength) < 0.05
    np.testing.assert_array_less(labels[20, 90, 1:], 5)  # ignored


def test_test_images_are_shown_as_the_evaluation_loads_them(data_root, tmp_path, call):
    exif = Image.Exif()
    exif[0x0112] = 3  # viewers turn it by 180 degrees
    image = np.full((16, 24, 3), RED, np.uint8)
    image[8:] = 0
    file = data_root / 'img_dir/train/0.jpg'
    Image.fromarray(image).save(file, quality=100, exif=exif)
    options = [
        f'test_dataloader.dataset.{key}'
        for key in (
            f'data_root={data_root}',
            'data_prefix.img_path=img_dir/train',
            'data_prefix.seg_map_path=ann_dir/train',
        )
    ]
    arguments = ('--split', 'test', '--number', 1, '--out-dir', tmp_path / 'out')
    assert call(BROWSE, CONFIG, *arguments, '--cfg-options', *options)[0] == 0
    picture = cv2.imread(str(tmp_path / 'out/000000_0.png'))[..., ::-1].astype(int)
    np.testing.assert_allclose(picture[22 + 60, 180], RED, atol=3)
    np.testing.assert_allclose(picture[22 + 180, 180], 0, atol=3)


def test_views_are_random_and_repeatable(data_root, tmp_path, call):
    shown = []
    for folder in ('one', 'two'):
        arguments = ('--out-dir', tmp_path / folder, '--views', 6, '--number', 1, '--start', 1)
        code, text = call(BROWSE, CONFIG, *arguments, *plain_pipeline(data_root, flip=0.5))
        assert code == 0
        files = sorted((tmp_path / folder).iterdir())
        assert [file.name for file in files] == [f'000001_1_{view}.png' for view in range(6)]
        shown.append([file.read_bytes() for file in files])
        assert 0 < text.count('flipped') < 6
    assert shown[0] == shown[1]
    assert len(set(shown[0])) == 2


def test_browse_dataset_refuses_wrong_input(data_root, tmp_path, call):
    options = plain_pipeline(data_root)
    out = ('--out-dir', tmp_path / 'out')
    assert call(BROWSE, CONFIG, *out, *options)[0] == 0
    code, text = call(BROWSE, CONFIG, *out, *options)
    assert code == 1
    assert 'exists; add --force' in text
    assert call(BROWSE, CONFIG, *out, '--force', *options)[0] == 0
    code, text = call(BROWSE, CONFIG, *out, '--start', 2, *options)
    assert (code, text) == (1, 'error: --start 2: the train split has 2 images, 0 to 1.')
    code, text = call(BROWSE, CONFIG, *out, '--number', 0, *options)
    assert code == 2
    assert '--number has to be at least 1, not 0' in text


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
