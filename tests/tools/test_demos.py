from __future__ import annotations

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmseg.apis import inference_model

from mmseg_coop.apis import load_model
from tests.conftest import ROOT, write_mini_with

DPANET = ROOT / 'configs/dpanet/dpanet_mnv2-d8_1xb6-600_camvid-180x240.py'
NAMES = ['top', 'bottom', 'ensemble']
WIDTH, TITLE = 3 * 120, 22  # of a panel, enlarged three times, and of the bar above it


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A config that evaluates the centre crop, images and a video."""
    folder = tmp_path_factory.mktemp('demos')
    resize = dict(type='Resize', scale=(256, 64), keep_ratio=True)
    crop = dict(type='EvalCenterCrop', crop_size=(64, 64))
    write_mini_with(folder / 'mini_cropped.py', resize, crop)
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


@pytest.fixture
def call(work, run_tool, untrained_mini):
    """Run a demo in the folder of the data; returns its last words."""

    def call(demo, what, *words, config='mini_cropped.py', checkpoint=untrained_mini, code=0):
        words = (what, config, checkpoint, *words)
        return run_tool(f'demo/{demo}.py', *words, cwd=work, code=code).splitlines()[-1]

    return call


@pytest.mark.parametrize('options', [[], ['--optimize']], ids=['plain', 'optimized'])
def test_folder_is_segmented_whole_with_all_outputs(work, tool, untrained_mini, tmp_path, options):
    words = (work / 'images', work / 'mini_cropped.py', untrained_mini)
    done = tool('demo/image_demo.py', *words, '--out', tmp_path / 'out', '--labels', *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(
        '2 of 2 images segmented, outputs top, bottom, ensemble'
    )
    assert '2/2' in done.stderr  # the progress bar
    model = load_model(Config.fromfile(work / 'mini_cropped.py'), str(untrained_mini))
    for name in ('a.jpg', 'b.png'):
        image = cv2.imread(str(work / 'images' / name))
        expected = inference_model(model, image).pred_outputs
        for output in NAMES:
            file = tmp_path / f'out/{output}/{name[0]}.png'
            label = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            assert label.shape == (80, 120)
            assert len(np.unique(label)) > 1
            same = label == expected.get(output)[0].numpy()
            assert same.mean() > 0.999 if options else same.all()
        drawn = cv2.imread(str(tmp_path / f'out/{name[0]}.png'))
        assert drawn.shape[1] == 4 * WIDTH + 3 * 4  # input and outputs
        assert drawn.shape[0] > TITLE + 3 * 80 + 22  # title, panel, legend
        title, legend = drawn[:TITLE], drawn[TITLE + 3 * 80 :]
        palette = model.dataset_meta['palette']
        assert (legend == palette[1][::-1]).all(axis=2).sum() > 100  # the colour of buildings
        assert title.min() < 100


def test_pattern_and_chosen_outputs(call, work, tmp_path):
    options = ('--out', tmp_path, '--labels', '--outputs', 'ensemble')
    words = call('image_demo', 'images/**/*.png', *options)
    assert words.startswith('2 of 2 images segmented, outputs ensemble')
    files = {str(f.relative_to(tmp_path)) for f in tmp_path.rglob('*.png')}
    assert files == {'b.png', 'inner/a.png', 'ensemble/b.png', 'ensemble/inner/a.png'}
    assert cv2.imread(str(tmp_path / 'b.png')).shape[1] == 2 * WIDTH + 4
    error = call('image_demo', 'images/b.png', '--out', tmp_path, code=1)
    assert error.endswith("b.png' exists; name another place, or add --force.")
    assert call('image_demo', 'images/b.png', '--out', tmp_path, '--force').startswith('1 of 1')


def test_model_with_a_single_output(call, untrained, tmp_path):
    model = dict(config=DPANET, checkpoint=untrained(DPANET, tmp_path / 'dpanet.pth'))
    options = ('--out', tmp_path / 'out', '--labels')
    words = call('image_demo', 'images/a.jpg', *options, **model)
    assert words.startswith('1 of 1 images segmented, outputs prediction')
    assert cv2.imread(str(tmp_path / 'out/prediction/a.png')).shape == (80, 120, 3)
    assert cv2.imread(str(tmp_path / 'out/a.png')).shape[1] == 2 * WIDTH + 4


def test_an_unreadable_image_stops_no_other(call, work, tmp_path):
    folder = tmp_path / 'mixed'
    folder.mkdir()
    (folder / 'a.jpg').write_bytes((work / 'images/a.jpg').read_bytes())
    (folder / 'broken.png').write_bytes(b'no image')
    (folder / 'empty.png').touch()
    message = call('image_demo', folder, '--out', tmp_path / 'out', code=1)
    assert message.startswith('error: ')
    assert 'broken.png is not readable as an image' in message
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
    assert message in call('image_demo', images, *arguments, code=1)


def test_images_that_would_write_the_same_file(call, work, tmp_path):
    for name in ('a.jpg', 'a.png'):
        (tmp_path / name).write_bytes((work / 'images/b.png').read_bytes())
    error = call('image_demo', tmp_path, '--out', tmp_path / 'out', code=1)
    assert 'would write the same a.png' in error


def test_video_has_all_outputs_of_every_frame(call, work, tmp_path):
    out = tmp_path / 'new/out.avi'
    words = call('video_demo', 'in.avi', '--out', out, '--fourcc', 'MJPG')
    assert words == f'3 frames segmented, outputs top, bottom, ensemble; video in {out}'
    video = cv2.VideoCapture(str(out))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    source = cv2.VideoCapture(str(work / 'in.avi'))
    for _ in range(3):
        drawn, frame = video.read()[1], source.read()[1]
        assert drawn.shape[1] == 4 * WIDTH + 3 * 4
        panel = drawn[TITLE : TITLE + 240, :WIDTH]
        enlarged = cv2.resize(frame, (WIDTH, 240), interpolation=cv2.INTER_NEAREST)
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
    message = call('video_demo', 'in.avi', '--out', tmp_path / 'out.mp4', code=1)
    assert 'exists; name another place, or add --force' in message


@pytest.mark.parametrize(
    ('video', 'options', 'code', 'message'),
    [
        ('gone.mp4', '--out x.mp4', 1, "video 'gone.mp4' does not exist"),
        ('mini_cropped.py', '--out x.mp4', 1, "'mini_cropped.py' cannot be read by OpenCV"),
        ('in.avi', '', 2, 'give --out FILE, --show or both'),
        ('in.avi', '--out x.mp4 --fourcc mp4', 2, "four characters such as mp4v, not 'mp4'"),
        ('in.avi', '--out x.mp4 --max-frames 0', 2, '--max-frames: has to be at least 1, not 0'),
        ('in.avi', '--out x.mp4 --fps -1', 2, '--fps has to be above 0, not -1.0'),
        ('in.avi', '--out x.what', 1, "OpenCV cannot write 'x.what' with --fourcc mp4v"),
    ],
)
def test_video_demo_refuses_wrong_arguments(call, work, video, options, code, message):
    assert message in call('video_demo', video, *options.split(), code=code)
    assert not list(work.glob('*x.*'))
