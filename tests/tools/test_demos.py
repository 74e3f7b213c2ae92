from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model
from mmseg.registry import MODELS

from mmseg_coop.apis.model import load_model
from mmseg_coop.config import forget_pretrained

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
DPANET = ROOT / 'configs/dpanet/dpanet_mnv2-d8_1xb6-2k_camvid-180x240.py'
NAMES = ['top', 'bottom', 'ensemble']
#: For tools in processes of their own: the checkout itself, where it is not installed.
PYTHONPATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
ENVIRONMENT = {**os.environ, 'PYTHONPATH': PYTHONPATH}


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A config that evaluates the centre crop, random weights, images and a video."""
    folder = tmp_path_factory.mktemp('demos')
    config = folder / 'mini_cropped.py'
    config.write_text(
        f"""_base_ = ['{MINI}']
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(256, 64), keep_ratio=True),
    dict(type='EvalCenterCrop', crop_size=(64, 64)),
    dict(type='PackSegInputs'),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""
    )
    init_default_scope('mmseg')  # fixtures of a module come before those of a test
    torch.manual_seed(1)
    model = MODELS.build(Config.fromfile(config).model)
    for name, parameter in model.named_parameters():
        if 'conv_seg' in name:
            torch.nn.init.normal_(parameter, std=2)
    torch.save(dict(state_dict=model.state_dict()), folder / 'model.pth')
    generator = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(folder / 'in.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 12, (120, 80))
    for name in ('a.jpg', 'b.png', 'inner/a.png'):
        file = folder / 'images' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.resize(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8), (120, 80))
        cv2.imwrite(str(file), image)
        writer.write(image)
    writer.release()
    (folder / 'images/notes.txt').write_text('not an image')
    return folder


def run(demo, what, work, *arguments):
    return subprocess.run(
        [
            *(sys.executable, ROOT / 'demo' / demo, what),
            *(work / 'mini_cropped.py', work / 'model.pth', *map(str, arguments)),
        ],
        text=True,
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
        cwd=work,
    )


@pytest.fixture
def call(work, monkeypatch, capsys):
    """Call a demo in this process, which saves the imports; returns its last words."""
    monkeypatch.syspath_prepend(str(ROOT / 'demo'))
    monkeypatch.chdir(work)

    def call(demo, what, *arguments, config='mini_cropped.py', checkpoint='model.pth'):
        module = __import__(demo)
        words = [demo, what, config, checkpoint, *arguments]
        monkeypatch.setattr(sys, 'argv', list(map(str, words)))
        try:
            module.main()
        except SystemExit as end:
            return str(end.code) if end.code != 2 else capsys.readouterr().err.splitlines()[-1]
        return capsys.readouterr().out.splitlines()[-1]

    return call


def test_folder_is_segmented_whole_with_all_outputs(work, tmp_path):
    done = run('image_demo.py', work / 'images', work, '--out', tmp_path / 'out', '--labels')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(
        '2 of 2 images segmented, outputs top, bottom, ensemble'
    )
    assert '2/2' in done.stderr  # the progress bar
    model = load_model(Config.fromfile(work / 'mini_cropped.py'), str(work / 'model.pth'))
    for name in ('a.jpg', 'b.png'):
        image = cv2.imread(str(work / 'images' / name))
        expected = inference_model(model, image).pred_outputs
        for output in NAMES:
            file = tmp_path / f'out/{output}/{name[0]}.png'
            label = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            assert label.shape == (80, 120)
            assert len(np.unique(label)) > 1
            np.testing.assert_array_equal(label, expected.get(output)[0].numpy())
        picture = cv2.imread(str(tmp_path / f'out/{name[0]}.png'))
        assert picture.shape[1] == 4 * 3 * 120 + 3 * 4  # input and outputs, enlarged three times
        assert picture.shape[0] > 22 + 3 * 80 + 22  # title, panel, legend
        title, legend = picture[:22], picture[22 + 3 * 80 :]
        palette = model.dataset_meta['palette']
        assert (legend == palette[1][::-1]).all(axis=2).sum() > 100  # the colour of buildings
        assert title.min() < 100


def test_pattern_and_chosen_outputs(call, work, tmp_path):
    words = call(
        *('image_demo', 'images/**/*.png', '--out', tmp_path, '--labels'),
        *('--outputs', 'ensemble'),
    )
    assert words.startswith('2 of 2 images segmented, outputs ensemble')
    files = {str(f.relative_to(tmp_path)) for f in tmp_path.rglob('*.png')}
    assert files == {'b.png', 'inner/a.png', 'ensemble/b.png', 'ensemble/inner/a.png'}
    assert cv2.imread(str(tmp_path / 'b.png')).shape[1] == 2 * 3 * 120 + 4
    again = call('image_demo', 'images/b.png', '--out', tmp_path)
    assert again.endswith("b.png' exists; choose another --out, or --overwrite.")
    assert call('image_demo', 'images/b.png', '--out', tmp_path, '--overwrite').startswith('1 of 1')


def test_model_with_a_single_output(call, tmp_path):
    cfg = Config.fromfile(DPANET)
    forget_pretrained(cfg.model)
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'dpanet.pth')
    words = call(
        *('image_demo', 'images/a.jpg', '--out', tmp_path / 'out', '--labels'),
        config=DPANET,
        checkpoint=tmp_path / 'dpanet.pth',
    )
    assert words.startswith('1 of 1 images segmented, outputs prediction')
    assert cv2.imread(str(tmp_path / 'out/prediction/a.png')).shape == (80, 120, 3)
    assert cv2.imread(str(tmp_path / 'out/a.png')).shape[1] == 2 * 3 * 120 + 4


def test_an_unreadable_image_stops_no_other(call, work, tmp_path):
    folder = tmp_path / 'mixed'
    folder.mkdir()
    (folder / 'a.jpg').write_bytes((work / 'images/a.jpg').read_bytes())
    (folder / 'broken.png').write_bytes(b'no image')
    (folder / 'empty.png').touch()
    message = call('image_demo', folder, '--out', tmp_path / 'out')
    assert message.startswith('error: not readable as images: ')
    assert 'broken.png' in message
    assert 'empty.png' in message
    assert [f.name for f in (tmp_path / 'out').iterdir()] == ['a.png']


@pytest.mark.parametrize(
    ('images', 'arguments', 'message'),
    [
        ('gone', (), "'gone' is no image and leads to none"),
        ('images/*.gif', (), "'images/*.gif' is no image and leads to none"),
        ('images/a.jpg', ('--outputs', 'left'), "output 'left' is unknown; the model has ['top'"),
        ('images/a.jpg', ('--device', 'abacus'), "--device 'abacus' cannot be used here"),
        ('images/a.jpg', ('--opacity', '2'), '--opacity takes 0 to 1, not 2.0'),
    ],
)
def test_image_demo_refuses_wrong_arguments(call, images, arguments, message):
    assert message in call('image_demo', images, *arguments)


def test_images_that_would_write_the_same_picture(call, work, tmp_path):
    for name in ('a.jpg', 'a.png'):
        (tmp_path / name).write_bytes((work / 'images/b.png').read_bytes())
    assert 'would write the same a.png' in call('image_demo', tmp_path, '--out', tmp_path / 'out')


def test_video_has_a_picture_of_every_frame(work, tmp_path):
    out = tmp_path / 'new/out.avi'
    done = run('video_demo.py', work / 'in.avi', work, '--out', out, '--fourcc', 'MJPG')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        f'3 frames segmented, outputs top, bottom, ensemble; video in {out}'
    )
    video = cv2.VideoCapture(str(out))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    source = cv2.VideoCapture(str(work / 'in.avi'))
    for _ in range(3):
        picture, frame = video.read()[1], source.read()[1]
        assert picture.shape[1] == 4 * 3 * 120 + 3 * 4
        panel = picture[22 : 22 + 240, :360]
        enlarged = cv2.resize(frame, (360, 240), interpolation=cv2.INTER_NEAREST)
        assert np.abs(panel.astype(int) - enlarged).mean() < 12  # compressed anew
    assert not video.read()[0]
    assert [f.name for f in out.parent.iterdir()] == ['out.avi']


def test_video_of_chosen_frames_and_outputs(call, work, tmp_path):
    options = ('--max-frames', 2, '--outputs', 'top', '--fps', '5')
    words = call('video_demo', 'in.avi', '--out', tmp_path / 'out.mp4', *options)
    assert words.startswith('2 frames segmented, outputs top')
    video = cv2.VideoCapture(str(tmp_path / 'out.mp4'))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    message = call('video_demo', 'in.avi', '--out', tmp_path / 'out.mp4')
    assert 'exists; choose another --out, or --overwrite' in message


@pytest.mark.parametrize(
    ('video', 'arguments', 'message'),
    [
        ('gone.mp4', ('--out', 'x.mp4'), "video 'gone.mp4' does not exist"),
        ('mini_cropped.py', ('--out', 'x.mp4'), "'mini_cropped.py' cannot be read by OpenCV"),
        ('in.avi', (), 'give --out FILE, --show or both'),
        (
            'in.avi',
            ('--out', 'x.mp4', '--fourcc', 'mp4'),
            "four characters such as mp4v, not 'mp4'",
        ),
        (
            'in.avi',
            ('--out', 'x.mp4', '--max-frames', '0'),
            '--max-frames has to be above 0, not 0',
        ),
        ('in.avi', ('--out', 'x.what'), "OpenCV cannot write 'x.what' with --fourcc mp4v"),
    ],
)
def test_video_demo_refuses_wrong_arguments(call, work, video, arguments, message):
    assert message in call('video_demo', video, *arguments)
    assert not list(work.glob('*x.*'))
