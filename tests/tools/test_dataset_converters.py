from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mmseg.registry import DATASETS
from PIL import Image

TOOLS = Path(__file__).parents[2] / 'tools' / 'dataset_converters'
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


def start(tool, *arguments):
    return subprocess.Popen(
        [sys.executable, str(TOOLS / tool), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(tool, *arguments, code=0):
    process = start(tool, *arguments)
    out, err = process.communicate()
    assert process.returncode == code, out + err
    return out if code == 0 else err


def hashes(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def build(kind, root, img_path, seg_map_path, ann_file='', **kwargs):
    return DATASETS.build(
        dict(
            type=kind,
            data_root=str(root),
            data_prefix=dict(img_path=img_path, seg_map_path=seg_map_path),
            ann_file=ann_file,
            pipeline=PIPELINE,
            **kwargs,
        )
    )


def present(dataset):
    """All label values of a data set."""
    return {int(value) for item in dataset for value in np.unique(item['gt_seg_map'])}


# --- make_mini_dataset.py


@pytest.fixture(scope='module')
def mini(tmp_path_factory):
    """Makes each layout once, in its default size, and returns its folder and the tool's output."""
    made = {}

    def make(layout):
        if layout not in made:
            root = tmp_path_factory.mktemp('mini') / layout
            made[layout] = root, run('make_mini_dataset.py', '--layout', layout, '--out', root)
        return made[layout]

    return make


def voc(root, name, folder='SegmentationClass'):
    return build(
        'PascalVOCDataset', root, 'JPEGImages', folder, f'ImageSets/Segmentation/{name}.txt'
    )


def cityscapes(root, split):
    return build('CityscapesDataset', root, f'leftImg8bit/{split}', f'gtFine/{split}')


def camvid(root, split):
    return build('CamVidDataset', root, f'img_dir/{split}', f'ann_dir/{split}')


@pytest.mark.parametrize(
    ('layout', 'load', 'length', 'num_classes'),
    [
        ('voc', lambda root: voc(root, 'train'), 32, 21),
        ('voc', lambda root: voc(root, 'aug', 'SegmentationClassAug'), 32, 21),
        ('voc', lambda root: voc(root, 'trainaug', 'SegmentationClassAug'), 64, 21),
        ('voc', lambda root: voc(root, 'val'), 16, 21),
        ('cityscapes', lambda root: cityscapes(root, 'train'), 64, 19),
        ('cityscapes', lambda root: cityscapes(root, 'val'), 16, 19),
        ('camvid', lambda root: camvid(root, 'train'), 64, 11),
        ('camvid', lambda root: camvid(root, 'val'), 16, 11),
        ('camvid', lambda root: camvid(root, 'test'), 16, 11),
    ],
)
def test_dataset_class_reads_the_layout_and_every_class_occurs(
    mini, layout, load, length, num_classes
):
    dataset = load(mini(layout)[0])
    assert len(dataset) == length
    assert len(dataset.metainfo['classes']) == num_classes
    assert present(dataset) == {*range(num_classes), 255}
    assert {item['img'].shape for item in dataset} == {(128, 128, 3)}
    assert {item['gt_seg_map'].shape for item in dataset} == {(128, 128)}


def test_mmsegs_concatenation_of_train_and_aug_shares_no_image(mini):
    root, _ = mini('voc')
    parts = [voc(root, 'train'), voc(root, 'aug', 'SegmentationClassAug'), voc(root, 'val')]
    names = [item['img_path'] for part in parts for item in part]
    assert len(set(names)) == len(names) == 80
    assert len(list((root / 'JPEGImages').iterdir())) == 80


@pytest.mark.parametrize('layout', ['voc', 'cityscapes', 'camvid'])
def test_table_names_the_dataset_class_classes_and_counts_their_pixels(mini, layout):
    root, out = mini(layout)
    dataset = {'voc': voc, 'cityscapes': cityscapes, 'camvid': camvid}[layout](root, 'val')
    labels = np.stack([item['gt_seg_map'] for item in dataset])
    lines = {line[:20].strip(): line[20:].split() for line in out.splitlines()}
    for value, name in [*enumerate(dataset.metainfo['classes']), (255, 'ignored')]:
        percent, images = lines[f'{value} {name}'][2:4]
        assert float(percent) == pytest.approx(100 * (labels == value).mean(), abs=0.0051)
        assert int(images) == (labels == value).any(axis=(1, 2)).sum()
    assert '64 train + 16 val' in out.splitlines()[-1]


@pytest.mark.parametrize(
    ('layout', 'folder'), [('voc', 'SegmentationClass'), ('camvid', 'ann_dir')]
)
def test_labels_are_palette_images_in_the_classes_colours(mini, layout, folder):
    root, _ = mini(layout)
    dataset = {'voc': voc, 'camvid': camvid}[layout](root, 'val')
    colours = np.array(dataset.metainfo['palette']).ravel().tolist()
    for path in (root / folder).rglob('*.png'):
        label = Image.open(path)
        assert label.mode == 'P'
        assert label.getpalette()[: len(colours)] == colours
    if layout == 'voc':
        assert label.getpalette()[3 * 255 :] == [224, 224, 192]


def test_voc_has_an_ignored_line_between_any_two_classes(mini):
    for item in voc(mini('voc')[0], 'trainaug', 'SegmentationClassAug'):
        label = item['gt_seg_map']
        for one, other in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
            different = one != other
            assert ((one == 255) | (other == 255))[different].all()


def test_scenes_differ_and_have_contrast(mini):
    images = [item['img'].astype(float) for item in camvid(mini('camvid')[0], 'train')]
    assert min(image.std() for image in images) > 20
    for one, other in itertools.pairwise(images):
        assert abs(one - other).mean() > 10


@pytest.mark.parametrize('layout', ['voc', 'cityscapes', 'camvid'])
def test_same_seed_same_bytes(tmp_path, layout):
    """In processes of their own."""
    arguments = ('--layout', layout, '--size', '64x96', '--train', 2, '--val', 1)
    for name, seed in (('one', 3), ('again', 3), ('other', 4)):
        run('make_mini_dataset.py', *arguments, '--out', tmp_path / name, '--seed', seed)
    one, again, other = (hashes(tmp_path / name) for name in ('one', 'again', 'other'))
    assert len(one) == {'voc': 12, 'cityscapes': 6, 'camvid': 8}[layout]
    assert one == again
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one if not name.endswith('.txt'))


def test_scene_does_not_depend_on_how_many_there_are(mini, tmp_path):
    run('make_mini_dataset.py', '--layout', 'voc', '--out', tmp_path, '--train', 3, '--val', 2)
    few, many = hashes(tmp_path), hashes(mini('voc')[0])
    pictures = [name for name in few if name.startswith(('JPEGImages', 'SegmentationClassAug'))]
    assert len(pictures) == 10
    assert all(few[name] == many[name] for name in pictures)


def test_size_is_height_by_width(tmp_path):
    arguments = ('--size', '64x96', '--train', 1, '--val', 1)
    run('make_mini_dataset.py', '--layout', 'cityscapes', '--out', tmp_path / 'x', *arguments)
    assert {item['img'].shape for item in cityscapes(tmp_path / 'x', 'val')} == {(64, 96, 3)}


def test_nothing_is_overwritten_without_force(tmp_path):
    arguments = (
        '--layout',
        'camvid',
        '--out',
        tmp_path,
        '--train',
        1,
        '--val',
        1,
        '--size',
        '64x64',
    )
    keep = tmp_path / 'notes.txt'
    keep.write_text('mine')
    error = run('make_mini_dataset.py', *arguments, code=1)
    assert error.count('\n') == 1
    assert f'--out {tmp_path} is not empty' in error
    assert '--force' in error
    assert list(tmp_path.iterdir()) == [keep]
    assert 'other files' not in run('make_mini_dataset.py', *arguments, '--force')
    assert keep.read_text() == 'mine'
    assert len(camvid(tmp_path, 'train')) == 1
    (tmp_path / 'img_dir' / 'train' / 'old.jpg').touch()
    text = run('make_mini_dataset.py', *arguments, '--force', '--seed', 1)
    assert 'note: 1 other files were there before and may be read along' in text


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (['--size', '64'], 2, "'64' is not a size; give height x width"),
        (
            ['--size', '32x640'],
            2,
            '--size 32x640 is too small for the objects; give at least 64x64',
        ),
        (['--train', '0'], 2, '--train 0: give 1 or more'),
        (['--seed', '-1'], 2, '--seed -1: give 0 or more'),
        (['--test', '3'], 2, '--test is for --layout camvid'),
        (['--out', __file__], 1, 'is a file; name a folder'),
        (['--out', f'{__file__}/x'], 1, 'Not a directory'),
        (['--size', '64x900'], 1, 'do not fit into 64x900 pixels; give a larger or less'),
    ],
)
def test_wrong_arguments(tmp_path, arguments, code, message):
    given = ['--layout', 'cityscapes', '--out', tmp_path / 'new', *arguments]
    error = run('make_mini_dataset.py', *given, code=code)
    assert message in error.splitlines()[-1]
    assert 'Traceback' not in error


# --- camvid.py

SPLITS = {'train': 4, 'val': 2, 'test': 1}


@pytest.fixture
def release(tmp_path):
    """A release in SegNet's layout: frames of 24x32 pixels with all labels, 0 to 11."""
    return make_release(tmp_path / 'CamVid', SPLITS, (24, 32))


def make_release(root, splits, size):
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for folder in (split, f'{split}annot'):
            (root / folder).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            label = rng.integers(0, 12, size, dtype=np.uint8)
            label.flat[:12] = range(12)
            Image.fromarray(image).save(root / split / f'{split}_{number}.png')
            Image.fromarray(label).save(root / f'{split}annot' / f'{split}_{number}.png')
    return root


@pytest.fixture(scope='module')
def conversion(tmp_path_factory):
    root = tmp_path_factory.mktemp('conversion')
    run('camvid.py', make_release(root / 'CamVid', SPLITS, (24, 32)), '--out', root / 'out')
    return root


@pytest.fixture
def converted(conversion, tmp_path):
    """A release and its conversion, to be tampered with."""
    shutil.copytree(conversion, tmp_path, dirs_exist_ok=True)
    return tmp_path / 'CamVid', tmp_path / 'out'


def read(path):
    return np.array(Image.open(path))


def test_conversion_keeps_pixels_and_moves_void(release, tmp_path):
    out = tmp_path / 'out'
    text = run('camvid.py', release, '--out', out)
    for split, count in SPLITS.items():
        dataset = build(
            'CamVidDataset', out, f'img_dir/{split}', f'ann_dir/{split}', img_suffix='.png'
        )
        assert len(dataset) == count
        assert present(dataset) == {*range(11), 255}
        for item in dataset:
            name = Path(item['img_path']).name
            np.testing.assert_array_equal(item['img'][..., ::-1], read(release / split / name))
            label = read(release / f'{split}annot' / name)
            np.testing.assert_array_equal(item['gt_seg_map'], np.where(label == 11, 255, label))
        written = Image.open(out / 'ann_dir' / split / f'{split}_0.png')
        assert written.mode == 'P'
        colours = np.array(dataset.metainfo['palette']).ravel().tolist()
        assert written.getpalette()[:33] == colours
    lines = {line[:20].strip(): line[20:].split() for line in text.splitlines()}
    labels = np.stack([read(path) for path in (release / 'trainannot').iterdir()])
    for value, name in [*enumerate(dataset.metainfo['classes']), (11, 'ignored')]:
        percent, images = lines[f'{255 if value == 11 else value} {name}'][:2]
        assert float(percent) == pytest.approx(100 * (labels == value).mean(), abs=0.0051)
        assert int(images) == 4
    assert 'holds 4 train, 2 val, 1 test frames' in text
    assert '7 were converted now, 0 were there' in text
    assert '7/7' in text  # the progress bar


def test_resized_jpeg_is_what_camvid_dataset_reads_by_default(release, tmp_path):
    out = tmp_path / 'out'
    run('camvid.py', release, '--out', out, '--size', '12x16', '--jpeg')
    dataset = camvid(out, 'train')
    assert len(dataset) == 4
    for item in dataset:
        assert item['img'].shape == (12, 16, 3)
        assert item['gt_seg_map'].shape == (12, 16)
        original = read(release / 'trainannot' / Path(item['seg_map_path']).name)
        neighbours = [original[i::2, j::2] for i in (0, 1) for j in (0, 1)]
        label = np.where(item['gt_seg_map'] == 255, 11, item['gt_seg_map'])
        assert np.any([label == neighbour for neighbour in neighbours], axis=0).all()


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGKILL])
def test_interrupted_conversion_goes_on(tmp_path, signum):
    release = make_release(tmp_path / 'CamVid', {'train': 8, 'val': 1, 'test': 1}, (24, 32))
    whole, out = tmp_path / 'whole', tmp_path / 'out'
    run('camvid.py', release, '--out', whole)
    # It comes no further than to an image that is a pipe to which nobody writes.
    held, kept = release / 'train/train_5.png', tmp_path / 'kept.png'
    held.rename(kept)
    os.mkfifo(held)
    process = start('camvid.py', release, '--out', out)
    while len(list(out.glob('ann_dir/train/*.png'))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signum)
    _, error = process.communicate()
    assert process.returncode != 0
    if signum == signal.SIGINT:
        assert error.strip() == 'interrupted; the same command goes on from here'
    finished = {path: path.stat().st_mtime_ns for path in out.rglob('[!.]*.png')}
    assert 3 <= len(finished) < 20
    partial = hashes(whole)
    assert all(
        partial[str(path.relative_to(out))] == hashlib.sha256(path.read_bytes()).hexdigest()
        for path in finished
    )
    kept.replace(held)
    text = run('camvid.py', release, '--out', out)
    assert ' 0 were there' not in text
    assert hashes(out) == hashes(whole)
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in finished.items())


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def set_label(value):
    def change(path):
        label = read(path)
        label[3, :4] = value
        Image.fromarray(label).save(path)

    return change


def colour(path):
    Image.open(path).convert('RGB').save(path)


def shrink(path):
    Image.open(path).resize((16, 12), Image.Resampling.NEAREST).save(path)


@pytest.mark.parametrize(
    ('path', 'change', 'message'),
    [
        ('valannot/val_1.png', remove, 'valannot lacks the annotation of val_1.png'),
        ('val/val_1.png', remove, 'val lacks the image of val_1.png'),
        ('testannot', shutil.rmtree, 'has no folder testannot; give the folder CamVid'),
        ('valannot/val_1.png', set_label(12), 'val_1.png holds the labels 12 (4 pixels); allowed'),
        ('valannot/val_1.png', colour, 'val_1.png has the mode RGB, not one channel'),
        ('valannot/val_1.png', shrink, 'val_1.png is 12x16 (height x width)'),
        ('valannot/val_1.png', cut, 'valannot/val_1.png cannot be read'),
        ('val/val_1.png', cut, 'val/val_1.png cannot be read'),
    ],
)
def test_faults_of_the_release_are_named(release, tmp_path, path, change, message):
    change(release / path)
    error = run('camvid.py', release, '--out', tmp_path / 'out', code=1)
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ('path', 'change', 'message'),
    [
        ('img_dir/val/val_1.png', cut, 'val_1.png cannot be read'),
        ('ann_dir/val/val_1.png', cut, 'val_1.png cannot be read'),
        ('ann_dir/val/val_1.png', set_label(11), 'val_1.png holds the labels 11 (4 pixels)'),
        ('ann_dir/val/val_1.png', shrink, 'val_1.png is 12x16, but this run writes 24x32'),
        ('img_dir/val/val_1.png', shrink, 'val_1.png is 12x16, but this run writes 24x32'),
    ],
)
def test_faults_of_an_earlier_result_are_named(converted, path, change, message):
    release, out = converted
    change(out / path)
    before = hashes(out)
    error = run('camvid.py', release, '--out', out, code=1)
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert hashes(out) == before


def test_half_file_of_a_killed_run_is_replaced(converted):
    release, out = converted
    before = hashes(out)
    label = out / 'ann_dir' / 'val' / 'val_1.png'
    label.with_name(f'.{label.name}.part').write_bytes(label.read_bytes()[:30])
    label.unlink()
    text = run('camvid.py', release, '--out', out)
    assert '1 were converted now, 6 were there' in text
    assert hashes(out) == before


def test_other_options_do_not_mix_with_an_earlier_result(converted):
    release, out = converted
    error = run('camvid.py', release, '--out', out, '--jpeg', code=1)
    assert 'holds files that are not of this conversion: test_0.png; delete them' in error
    error = run('camvid.py', release, '--out', out, '--size', '12x16', code=1)
    assert 'repeat the --size of the first run' in error
