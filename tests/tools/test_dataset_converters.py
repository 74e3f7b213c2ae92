"""The dataset converters: what they write is what mmseg's dataset classes read."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmseg.registry import DATASETS
from PIL import Image
from scipy.io import savemat

TOOLS = Path(__file__).parents[2] / 'tools/dataset_converters'
needs_scripts = pytest.mark.skipif(
    importlib.util.find_spec('cityscapesscripts') is None,
    reason='cityscapesscripts is not installed',
)


@pytest.fixture(scope='session')
def run(run_tool):
    """Run a converter."""
    folder = 'tools/dataset_converters'
    return lambda name, *words, **code: run_tool(f'{folder}/{name}.py', *words, **code)


def start(name, *words, **kwargs):
    """Start a converter in a process of its own, for signals and --jobs."""
    return subprocess.Popen(
        [sys.executable, str(TOOLS / f'{name}.py'), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **kwargs,
    )


def finish(process, code=0):
    out, err = process.communicate()
    assert process.returncode == code, out + err
    return err.strip() if code else out


def state(root):
    """The content and the time of all files."""
    return {
        path.relative_to(root).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in root.rglob('*')
        if path.is_file()
    }


def content(root):
    return {name: digest for name, (digest, _) in state(root).items()}


def read(path):
    return np.array(Image.open(path))


def build(kind, root, img_path, seg_map_path, ann_file='', **kwargs):
    return DATASETS.build(
        dict(
            type=kind,
            data_root=str(root),
            data_prefix=dict(img_path=img_path, seg_map_path=seg_map_path),
            ann_file=ann_file,
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
            **kwargs,
        )
    )


def voc(root, name, folder='SegmentationClass'):
    lists = f'ImageSets/Segmentation/{name}.txt'
    return build('PascalVOCDataset', root, 'JPEGImages', folder, lists)


def cityscapes(root, split):
    return build('CityscapesDataset', root, f'leftImg8bit/{split}', f'gtFine/{split}')


def camvid(root, split, **kwargs):
    return build('CamVidDataset', root, f'img_dir/{split}', f'ann_dir/{split}', **kwargs)


def rgbd(root, split):
    list_ = 'test.txt' if split == 'val' else f'{split}.txt'
    return build('NYUv2Dataset', root, 'RGB', 'Label', list_)


def rgbt(root, split):
    return build('MFNetDataset', root, 'images', 'labels', f'{split}.txt')


CLASS = dict(voc=voc, cityscapes=cityscapes, camvid=camvid, rgbd=rgbd, rgbt=rgbt)


def check_table(out, classes, labels):
    """Holds the printed table to the label maps of each split, given in the printed order."""
    rows = {line[:20].strip(): line[20:].split() for line in out.splitlines()}
    for value, name in [*enumerate(classes), (255, 'ignored')]:
        numbers = rows[f'{value} {name}']
        assert len(numbers) == 2 * len(labels)
        for i, maps in enumerate(labels):
            share = np.mean(np.concatenate([m.ravel() for m in maps]) == value) if maps else 0
            assert float(numbers[2 * i]) == pytest.approx(100 * share, abs=0.0051)
            assert int(numbers[2 * i + 1]) == sum((m == value).any() for m in maps)


def check_palette(path, dataset):
    colours = np.array(dataset.metainfo['palette']).ravel().tolist()
    label = Image.open(path)
    assert label.mode == 'P'
    assert label.getpalette()[: len(colours)] == colours


# --- make_mini_dataset.py

AUGMENTED = 'SegmentationClassAug'


@pytest.fixture(scope='module')
def mini(tmp_path_factory, run):
    """Draws each layout in its default size; returns its folder and the tool's output."""
    made = {}

    def make(layout):
        if layout not in made:
            root = tmp_path_factory.mktemp('mini') / layout
            made[layout] = root, run('make_mini_dataset', '--layout', layout, '--out', root)
        return made[layout]

    return make


@pytest.mark.parametrize(
    ('layout', 'lengths', 'num_classes'),
    [
        ('voc', {('train',): 32, ('val',): 16}, 21),
        ('voc', {('aug', AUGMENTED): 32, ('trainaug', AUGMENTED): 64}, 21),
        ('cityscapes', {('train',): 64, ('val',): 16}, 19),
        ('camvid', {('train',): 64, ('val',): 16, ('test',): 16}, 11),
    ],
)
def test_dataset_class_reads_the_layout_and_every_class_occurs(mini, layout, lengths, num_classes):
    for arguments, length in lengths.items():
        items = list(dataset := CLASS[layout](mini(layout)[0], *arguments))
        assert len(items) == length
        assert len(dataset.metainfo['classes']) == num_classes
        labels = np.stack([item['gt_seg_map'] for item in items])
        assert set(np.unique(labels)) == {*range(num_classes), 255}
        assert {item['img'].shape for item in items} == {(128, 128, 3)}
        assert labels.shape[1:] == (128, 128)


def test_mmsegs_concatenation_of_train_and_aug_shares_no_image(mini):
    root, _ = mini('voc')
    parts = [voc(root, 'train'), voc(root, 'aug', 'SegmentationClassAug'), voc(root, 'val')]
    names = [item['img_path'] for part in parts for item in part]
    assert len(set(names)) == len(names) == 80
    assert len(list((root / 'JPEGImages').iterdir())) == 80


@pytest.mark.parametrize('layout', ['voc', 'cityscapes', 'camvid'])
def test_table_counts_and_palettes_are_those_of_the_dataset_class(mini, layout):
    root, out = mini(layout)
    dataset = CLASS[layout](root, 'val')
    train = CLASS[layout](
        root, *(['trainaug', 'SegmentationClassAug'] if layout == 'voc' else ['train'])
    )
    splits = [train, dataset] + ([CLASS[layout](root, 'test')] if layout == 'camvid' else [])
    labels = [[item['gt_seg_map'] for item in split] for split in splits]
    check_table(out, dataset.metainfo['classes'], labels)
    assert '64 train + 16 val' in out.splitlines()[-1]
    if layout != 'cityscapes':
        for item in dataset:
            check_palette(item['seg_map_path'], dataset)


def test_voc_has_an_ignored_line_between_any_two_classes(mini):
    for item in voc(mini('voc')[0], 'trainaug', 'SegmentationClassAug'):
        label = item['gt_seg_map']
        for one, other in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
            different = one != other
            assert ((one == 255) | (other == 255))[different].all()
    assert Image.open(item['seg_map_path']).getpalette()[3 * 255 :] == [224, 224, 192]


def test_scenes_differ_and_have_contrast(mini):
    images = [item['img'].astype(float) for item in camvid(mini('camvid')[0], 'train')]
    assert min(image.std() for image in images) > 20
    for one, other in itertools.pairwise(images):
        assert abs(one - other).mean() > 10


@pytest.mark.parametrize(
    ('layout', 'splits', 'shown'),
    [
        ('rgbd', ('train', 'val'), {'wall', 'floor', 'picture', 'floor mat', 'box', 'chair'}),
        ('rgbt', ('train', 'val', 'test'), {'unlabeled', 'car', 'person', 'color_cone'}),
    ],
)
def test_scenes_of_two_images_lie_as_their_dataset_classes_read_them(mini, layout, splits, shown):
    root, out = mini(layout)
    datasets = [CLASS[layout](root, split) for split in splits]
    assert [len(dataset) for dataset in datasets] == [64, 16, 16][: len(splits)]
    classes = datasets[0].metainfo['classes']
    labels = [[item['gt_seg_map'] for item in dataset] for dataset in datasets]
    for maps in labels:
        assert {classes[label] for label in np.unique(maps)} == shown
    if layout == 'rgbd':  # files start at 1, and 255 + 1 is 0
        check_table(out, ['unlabelled', *classes], [[m + np.uint8(1) for m in x] for x in labels])
    else:
        check_table(out, classes, labels)
    assert 'note:' not in out


def contrast(layout, root, name):
    """How much a class differs from wall, floor and ground in the same rows, by channel."""
    dataset, found = CLASS[layout](root, 'train'), []
    load = dict(type='LoadSegImage', color_type='unchanged')
    steps = [load, dict(type='LoadSecondImage', folder=('RGB', 'Depth'), dtype='uint16')]
    for item in dataset:
        image = Compose(steps[: 1 + (layout == 'rgbd')])(dict(item))['img'].astype(float)
        label = item['gt_seg_map']
        for row in np.flatnonzero((label == dataset.metainfo['classes'].index(name)).any(1)):
            thing = label[row] == dataset.metainfo['classes'].index(name)
            ground = label[row] < (2 if layout == 'rgbd' else 1)
            if ground.sum() > 20 and thing.sum() > 5:
                medians = [np.median(image[row, where], axis=0) for where in (thing, ground)]
                found.append(np.abs(medians[0] - medians[1]) / (1 + medians[1]))
    colours, second = np.mean(found, 0)[:3].max(), np.mean(found, 0)[3]
    return colours, second


@pytest.mark.parametrize(
    ('layout', 'name', 'sees_colour', 'sees_second'),
    [
        ('rgbd', 'box', False, True),
        ('rgbd', 'picture', True, False),
        ('rgbd', 'floor mat', True, False),
        ('rgbt', 'person', False, True),
        ('rgbt', 'color_cone', True, False),
        ('rgbt', 'car', True, True),
    ],
)
def test_each_image_of_a_scene_shows_what_the_other_does_not(
    mini, layout, name, sees_colour, sees_second
):
    colours, second = contrast(layout, mini(layout)[0], name)
    assert colours > 0.5 if sees_colour else colours < 0.3
    assert second > 0.25 if sees_second else second < 0.05


@pytest.mark.parametrize('layout', CLASS)
def test_same_seed_same_bytes(run, tmp_path, layout):
    """In another process as well."""
    words = ('make_mini_dataset', '--layout', layout, '--size', '64x96', '--train', 2, '--val', 1)
    run(*words, '--out', tmp_path / 'one', '--seed', 3)
    finish(start(*words, '--out', tmp_path / 'again', '--seed', 3))
    run(*words, '--out', tmp_path / 'other', '--seed', 4)
    one, again, other = (content(tmp_path / name) for name in ('one', 'again', 'other'))
    assert len(one) == {'voc': 12, 'cityscapes': 6, 'camvid': 8, 'rgbd': 11, 'rgbt': 11}[layout]
    assert one == again
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one if not name.endswith('.txt'))
    item = CLASS[layout](tmp_path / 'one', 'val')[0]
    assert item['img'].shape == (64, 96, 3)


def test_scene_does_not_depend_on_how_many_there_are(mini, run, tmp_path):
    run('make_mini_dataset', '--layout', 'voc', '--out', tmp_path, '--train', 3, '--val', 2)
    few, many = content(tmp_path), content(mini('voc')[0])
    images = [name for name in few if name.startswith(('JPEGImages', 'SegmentationClassAug'))]
    assert len(images) == 10
    assert all(few[name] == many[name] for name in images)


def test_mini_dataset_overwrites_nothing_without_force(run, tmp_path):
    words = ('--layout', 'camvid', '--out', tmp_path, '--train', 1, '--val', 1, '--size', '64x64')
    keep = tmp_path / 'notes.txt'
    keep.write_text('mine')
    error = run('make_mini_dataset', *words, code=1)
    assert f'--out {tmp_path} is not empty' in error
    assert '--force' in error
    assert list(tmp_path.iterdir()) == [keep]
    assert 'other files' not in run('make_mini_dataset', *words, '--force')
    assert keep.read_text() == 'mine'
    assert len(camvid(tmp_path, 'train')) == 1
    (tmp_path / 'img_dir/train/old.jpg').touch()
    text = run('make_mini_dataset', *words, '--force', '--seed', 1)
    assert 'note: 1 other files were there before and may be read along' in text


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (['--size', '64'], 2, "--size: takes HEIGHTxWIDTH such as 513x513, not '64'"),
        (['--size', '32x640'], 2, '32x640 is too small for the objects; give at least 64x64'),
        (['--train', '0'], 2, '--train: has to be at least 1, not 0'),
        (['--seed', '-1'], 2, '--seed: has to be at least 0, not -1'),
        (['--test', '3'], 2, '--test is for --layout camvid'),
        (['--out', __file__], 1, 'is a file; name a folder'),
        (['--out', f'{__file__}/x'], 1, 'Not a directory'),
        (['--size', '64x900'], 1, 'do not fit into 64x900 pixels; give a larger or less'),
    ],
)
def test_wrong_arguments_of_the_mini_dataset(run, tmp_path, arguments, code, message):
    given = ['--layout', 'cityscapes', '--out', tmp_path / 'new', *arguments]
    assert message in run('make_mini_dataset', *given, code=code)


# --- camvid.py, voc_aug.py and cityscapes.py on releases of a few small images

RNG = np.random.default_rng(0)
CAMVID_SPLITS = {'train': 4, 'val': 2, 'test': 1}
VOC_TRAIN, VOC_VAL = ['2007_000001', '2007_000002', '2007_000003'], ['2007_000011', '2007_000012']
SBD_TRAIN = ['2008_000001', '2008_000002', '2007_000001', '2007_000011']
SBD_VAL = ['2008_000003', '2007_000002', '2007_000012', '2008_000004']
AUG = ['2008_000001', '2008_000002', '2008_000003', '2008_000004']
SIZE = (12, 16)
FRAMES = {'train': 2, 'val': 1, 'test': 1}


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def random_image(size):
    return RNG.integers(0, 256, (*size, 3), dtype=np.uint8)


def make_camvid(root):
    """Frames of 24x32 pixels with all labels, 0 to 11, in SegNet's layout."""
    for split, count in CAMVID_SPLITS.items():
        for number in range(count):
            label = RNG.integers(0, 12, (24, 32), dtype=np.uint8)
            label.flat[:12] = range(12)
            write_image(root / f'CamVid/{split}/{split}_{number}.png', random_image((24, 32)))
            write_image(root / f'CamVid/{split}annot/{split}_{number}.png', label)


def save_mat(path, label):
    """Writes a label as SBD does: beside it the boundaries and the categories."""
    struct = dict(Segmentation=label, Boundaries=np.zeros((20, 1)), CategoriesPresent=[1, 2])
    savemat(path, {'GTcls': struct}, do_compression=True)


def make_voc(root):
    """VOC 2012 and SBD with the same images and labels of their own."""
    devkit, sbd = root / 'VOCdevkit/VOC2012', root / 'benchmark_RELEASE/dataset'
    lists = devkit / 'ImageSets/Segmentation'
    for folder in (lists, sbd / 'cls'):
        folder.mkdir(parents=True)
    for path, names in (
        (lists / 'train.txt', VOC_TRAIN),
        (lists / 'val.txt', VOC_VAL),
        (sbd / 'train.txt', SBD_TRAIN),
        (sbd / 'val.txt', SBD_VAL),
    ):
        path.write_text(''.join(f'{name}\n' for name in names))
    for name in [*VOC_TRAIN, *VOC_VAL, *AUG]:
        write_image(devkit / f'JPEGImages/{name}.jpg', random_image(SIZE))
    for name in [*VOC_TRAIN, *VOC_VAL]:
        label = RNG.integers(0, 22, SIZE, dtype=np.uint8)
        label[label == 21] = 255
        write_image(devkit / f'SegmentationClass/{name}.png', label)
    for name in [*SBD_TRAIN, *SBD_VAL]:
        label = RNG.integers(0, 21, SIZE, dtype=np.uint8)
        save_mat(sbd / f'cls/{name}.mat', label)
        np.save(root / f'{name}.npy', label)


def box(label, left, top, right, bottom, **kwargs):
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return dict(label=label, polygon=corners, **kwargs)


# Painted one over the other; a car is cut out of a group of cars, and the plate is not drawn.
OBJECTS = [
    box('road', 0, 8, 31, 15),
    box('sky', 0, 0, 31, 3),
    box('ego vehicle', 0, 14, 31, 15),
    box('cargroup', 4, 6, 11, 11),
    box('truck', 20, 6, 25, 9, deleted=1),
    box('license plate', 6, 10, 7, 10),
    box('bicycle', 28, 5, 30, 12),
]
DRAWN = np.full((16, 32), 255, np.uint8)
DRAWN[8:] = 0
DRAWN[:4] = 10
DRAWN[14:] = 255
DRAWN[6:12, 4:12] = 13
DRAWN[5:13, 28:31] = 18


def write_polygons(path, objects, height=16, width=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(imgHeight=height, imgWidth=width, objects=objects)))


def make_cityscapes(root, frames=FRAMES):
    for split, count in frames.items():
        city = {'train': 'aachen', 'val': 'munster', 'test': 'berlin'}[split]
        for number in range(count):
            name = f'{split}/{city}/{city}_{number:06d}_000019'
            write_image(root / f'leftImg8bit/{name}_leftImg8bit.png', random_image((16, 32)))
            objects = OBJECTS if split != 'test' else OBJECTS[2:3]
            write_polygons(root / f'gtFine/{name}_gtFine_polygons.json', objects)


MAKE = dict(camvid=make_camvid, voc=make_voc, cityscapes=make_cityscapes)
VOC, SBD = 'VOCdevkit/VOC2012', 'benchmark_RELEASE/dataset'


def command(kind, root):
    return {
        'camvid': ('camvid', root / 'CamVid', '--out', root / 'out'),
        'voc': ('voc_aug', root / VOC, root / SBD, '--expect', 7),
        'cityscapes': ('cityscapes', root),
    }[kind]


@pytest.fixture(scope='module')
def converted(tmp_path_factory, tool):
    """A release after its conversion, not to be changed, and what the tool did."""
    made = {}

    def convert(kind):
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            MAKE[kind](root)
            name, *words = command(kind, root)
            done = tool(f'tools/dataset_converters/{name}.py', *words)
            assert done.returncode == 0, done.stderr
            made[kind] = root, done
        return made[kind]

    return convert


@pytest.fixture
def changed(converted, tmp_path):
    """A copy of the conversion, to be tampered with."""
    return lambda kind: Path(shutil.copytree(converted(kind)[0], tmp_path / kind))


def test_camvid_keeps_pixels_and_moves_void(converted):
    root, done = converted('camvid')
    labels = []
    for split, count in CAMVID_SPLITS.items():
        dataset = camvid(root / 'out', split, img_suffix='.png')
        assert len(dataset) == count
        for item in dataset:
            name = Path(item['img_path']).name
            np.testing.assert_array_equal(
                item['img'][..., ::-1], read(root / 'CamVid' / split / name)
            )
            label = read(root / f'CamVid/{split}annot' / name)
            np.testing.assert_array_equal(item['gt_seg_map'], np.where(label == 11, 255, label))
            check_palette(item['seg_map_path'], dataset)
        labels.append([item['gt_seg_map'] for item in dataset])
    check_table(done.stdout, dataset.metainfo['classes'], labels)
    assert 'labels: 4 train, 2 val, 1 test\n7 were converted now, 0 were there' in done.stdout
    assert '7/7' in done.stdout  # the progress bar


def test_resized_jpeg_is_what_camvid_dataset_reads_by_default(converted, run, tmp_path):
    release = converted('camvid')[0] / 'CamVid'
    run('camvid', release, '--out', tmp_path, '--size', '12x16', '--jpeg')
    dataset = camvid(tmp_path, 'train')
    assert len(dataset) == 4
    for item in dataset:
        assert item['img'].shape == (12, 16, 3)
        assert item['gt_seg_map'].shape == (12, 16)
        original = read(release / 'trainannot' / Path(item['seg_map_path']).name)
        neighbours = [original[i::2, j::2] for i in (0, 1) for j in (0, 1)]
        label = np.where(item['gt_seg_map'] == 255, 11, item['gt_seg_map'])
        assert np.any([label == neighbour for neighbour in neighbours], axis=0).all()


def test_camvid_does_not_mix_other_options_with_an_earlier_result(changed, run):
    words = command('camvid', changed('camvid'))
    error = run(*words, '--jpeg', code=1)
    assert 'holds files that are not of this conversion: test_0.png; delete them' in error
    assert 'repeat the --size of the first run' in run(*words, '--size', '12x16', code=1)


def test_lists_are_voc_and_sbd_without_val(converted):
    root, done = converted('voc')
    folder = root / VOC / 'ImageSets/Segmentation'
    assert (folder / 'aug.txt').read_text().split() == AUG
    assert (folder / 'trainaug.txt').read_text().split() == [*VOC_TRAIN, *AUG]
    assert (folder / 'train.txt').read_text().split() == VOC_TRAIN
    assert done.stdout.splitlines()[-1] == 'aug.txt: 4 names, trainaug.txt: 7 names'


def test_labels_are_sbds_where_voc_has_none_and_voc_datasets_read_them(converted):
    root, done = converted('voc')
    labels = {}
    for name, length in (('trainaug', 7), ('val', 2), ('aug', 4)):
        dataset = voc(root / VOC, name, 'SegmentationClassAug')
        assert len(dataset) == length
        for item in dataset:
            stem, label = Path(item['img_path']).stem, item['gt_seg_map']
            own = root / VOC / f'SegmentationClass/{stem}.png'
            source = np.load(root / f'{stem}.npy') if stem in AUG else read(own)
            np.testing.assert_array_equal(label, source)
            assert (label == 255).any() == (stem not in AUG)
            assert item['img'].shape == (*SIZE, 3)
            check_palette(item['seg_map_path'], dataset)
            labels[stem] = label
    assert len(list((root / VOC / 'SegmentationClassAug').iterdir())) == len(labels) == 9
    splits = [[labels[name] for name in names] for names in (VOC_TRAIN, VOC_VAL, AUG)]
    check_table(done.stdout, dataset.metainfo['classes'], splits)
    assert 'labels: 3 train, 2 val, 4 aug\n9 were converted now, 0 were there' in done.stdout


def test_folders_above_are_accepted_and_out_is_another_folder(run, tmp_path):
    make_voc(tmp_path)
    before = state(tmp_path / VOC)
    folders = ((tmp_path / VOC).parent, (tmp_path / SBD).parent)
    run('voc_aug', *folders, '--out', tmp_path / 'out', '--expect', 7)
    assert state(tmp_path / VOC) == before
    assert {path.name for path in tmp_path.rglob('*aug.txt')} == {'aug.txt', 'trainaug.txt'}
    assert len(list((tmp_path / 'out/SegmentationClassAug').iterdir())) == 9


def test_another_number_of_names_is_an_error_with_the_way_out(run, tmp_path):
    make_voc(tmp_path)
    before = state(tmp_path)
    error = run('voc_aug', tmp_path / VOC, tmp_path / SBD, code=1)
    assert 'gets 7 names (3 of VOC, 4 of SBD) instead of 10582' in error
    assert '--expect 7' in error
    assert state(tmp_path) == before
    error = run('voc_aug', tmp_path, tmp_path, '--jobs', 'two', code=2)
    assert error.endswith('argument --jobs: has to be at least 1, not two')


def test_grey_labels_and_other_order_of_a_list_are_the_same_result(changed, run):
    root = changed('voc')
    label = root / VOC / 'SegmentationClassAug/2008_000001.png'
    Image.fromarray(read(label)).save(label)
    (root / VOC / 'ImageSets/Segmentation/aug.txt').write_text('\n'.join(AUG[::-1]))
    before = state(root)
    run(*command('voc', root))
    assert state(root) == before


@needs_scripts
def test_train_ids_are_drawn_as_cityscapes_dataset_reads_them(converted, tmp_path):
    root, done = converted('cityscapes')
    labels = []
    for split, count in FRAMES.items():
        dataset = cityscapes(root, split)
        labels.append([item['gt_seg_map'] for item in dataset])
        for item in dataset:
            assert item['img'].shape == (16, 32, 3)
            expected = np.full_like(DRAWN, 255) if split == 'test' else DRAWN
            np.testing.assert_array_equal(item['gt_seg_map'], expected)
        assert len(dataset) == count
    check_table(done.stdout, dataset.metainfo['classes'], labels)
    assert 'labels: 2 train, 1 val, 1 test\n4 were converted now, 0 were there' in done.stdout
    assert done.stderr.strip() == (
        'warning: train has 2 frames instead of 2975, val has 1 frames instead of 500, test has '
        '1 frames instead of 1525; is the release complete?'
    )
    # Cityscapes' own converter draws the same.
    module = 'cityscapesscripts.preparation.json2labelImg'
    for path in root.glob('gtFine/*/*/*.json'):
        subprocess.run([sys.executable, '-m', module, '-t', path, tmp_path / 'own.png'], check=True)
        ours = path.with_name(path.name.replace('polygons.json', 'labelTrainIds.png'))
        np.testing.assert_array_equal(read(ours), read(tmp_path / 'own.png'))


@needs_scripts
def test_another_number_of_frames_is_refused_by_strict_alone(run, tmp_path):
    make_cityscapes(tmp_path, {'train': 1, 'val': 1})
    before = state(tmp_path)
    error = run('cityscapes', tmp_path, '--strict', code=1)
    assert 'train has 1 frames instead of 2975' in error
    assert 'leave out --strict' in error
    assert state(tmp_path) == before
    assert 'labels: 1 train, 1 val, 0 test\n' in run('cityscapes', tmp_path)


def test_missing_cityscapesscripts_is_one_line_with_the_command(tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cityscapesscripts.helpers.annotation', None)
    assert 'CITYSCAPES_DIR' in run('cityscapes', '--help')
    error = run('cityscapes', tmp_path, code=1)
    assert error.startswith('error: cityscapesscripts cannot be imported (')
    assert error.endswith('); run: pip install cityscapesscripts')


@needs_scripts
def test_wrong_folder_of_cityscapes(run, tmp_path):
    error = run('cityscapes', tmp_path, code=1)
    assert f'{tmp_path} holds no leftImg8bit/' in error
    assert 'into which Cityscapes was unpacked' in error


# --- what is wrong with a release is named


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


def mat(label):
    return lambda path: save_mat(path, label)


def polygons(*objects, **size):
    return lambda path: write_polygons(path, objects, **size)


MAT, VOC_LABEL = f'{SBD}/cls/2008_000002.mat', f'{VOC}/SegmentationClass/2007_000002.png'
TRAIN = 'gtFine/train/aachen/aachen_000001_000019_gtFine_polygons.json'
TRAIN_IMAGE = 'leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png'
FAULTS = {
    'camvid': [
        ('CamVid/valannot/val_1.png', remove, 'valannot lacks the annotation of val_1.png'),
        ('CamVid/val/val_1.png', remove, 'val lacks the image of val_1.png'),
        ('CamVid/testannot', shutil.rmtree, 'has no folder testannot; give the folder CamVid'),
        ('CamVid/valannot/val_1.png', set_label(12), 'val_1.png holds the labels 12 (4 pixels)'),
        ('CamVid/valannot/val_1.png', colour, 'val_1.png has the mode RGB, not one channel'),
        ('CamVid/valannot/val_1.png', shrink, 'val_1.png is 24x32, but'),
        ('CamVid/valannot/val_1.png', cut, 'valannot/val_1.png cannot be read'),
        ('CamVid/val/val_1.png', cut, 'val/val_1.png cannot be read'),
    ],
    'voc': [
        (MAT, remove, 'cls lacks the .mat file of 2008_000002; restore it'),
        (f'{SBD}/cls/2007_000011.mat', remove, 'lacks the .mat file of 2007_000011; restore it'),
        (MAT, cut, '2008_000002.mat cannot be read as GTcls.Segmentation'),
        (f'{SBD}/cls', shutil.rmtree, 'dataset has no folder cls; give the folder dataset of SBD'),
        (f'{SBD}/train.txt', remove, 'dataset/train.txt is missing; restore it'),
        (MAT, mat(np.full(SIZE, 21, np.uint8)), 'labels 21 (192 pixels); allowed are 0 to 20; res'),
        (MAT, mat(np.full(SIZE, 300)), 'holds an array of shape (12, 16) and type int64, not a'),
        (MAT, mat(np.zeros((16, 12), np.uint8)), '2008_000002.mat is 16x12, but'),
        (MAT, lambda path: savemat(path, {'GTinst': 1}), "GTcls.Segmentation (KeyError: 'GTcls')"),
        (f'{VOC}/ImageSets', shutil.rmtree, 'has no folder ImageSets/Segmentation; give the folde'),
        (f'{VOC}/JPEGImages', shutil.rmtree, '2007_000011, 2007_000012 and 4 more'),
        (VOC_LABEL, remove, 'SegmentationClass lacks the label of 2007_000002'),
        (VOC_LABEL, cut, 'Class/2007_000002.png cannot be read'),
        (VOC_LABEL, colour, '2007_000002.png has the mode RGB, not one channel'),
    ],
    'cityscapes': [
        (TRAIN, remove, 'lacks the *_gtFine_polygons.json of aachen/aachen_000001_000019; restore'),
        (TRAIN_IMAGE, remove, 'lacks the *_leftImg8bit.png of aachen/aachen_000001_000019; restor'),
        ('leftImg8bit/val', shutil.rmtree, 'val lacks the *_leftImg8bit.png of munster/munster_0'),
        (TRAIN, cut, 'aachen_000001_000019_gtFine_polygons.json cannot be drawn (JSONDecodeError'),
        (TRAIN, lambda path: path.write_text('{}'), "cannot be drawn (KeyError: 'imgWidth')"),
        (
            TRAIN,
            polygons(box('boat', 0, 0, 1, 1), box('car', 0, 0, 1, 1)),
            'polygons.json holds the labels boat, which are none of Cityscapes',
        ),
        (TRAIN, polygons(dict(label='car', polygon=[])), '_gtFine_polygons.json cannot be drawn'),
        (TRAIN, polygons(*OBJECTS, height=32, width=16), 'is 32x16, but its image is 16x32'),
        (TRAIN_IMAGE, lambda path: path.write_text('x'), '_leftImg8bit.png cannot be read'),
    ],
}
MARKS = dict(camvid=(), voc=(), cityscapes=needs_scripts)


def cases(table):
    return [
        pytest.param(kind, *case, marks=MARKS[kind], id=f'{kind}-{number}')
        for kind, rows in table.items()
        for number, case in enumerate(rows)
    ]


@pytest.mark.parametrize(('kind', 'path', 'change', 'message'), cases(FAULTS))
def test_faults_of_a_release_are_named(kind, path, change, message, run, tmp_path):
    MAKE[kind](tmp_path)
    change(tmp_path / path)
    assert message in run(*command(kind, tmp_path), code=1)
    # Lists come last, and no faulty file is converted.
    assert not list(tmp_path.rglob('*aug.txt'))
    assert not list(tmp_path.glob(f'{TRAIN[:40]}*TrainIds.png'))


# --- what an earlier run has left is checked, kept and never replaced unasked

DRAWN_LABEL = 'gtFine/val/munster/munster_000000_000019_gtFine_labelTrainIds.png'
AUG_LABEL = f'{VOC}/SegmentationClassAug/2008_000001.png'
DAMAGE = {
    'camvid': [
        ('out/img_dir/val/val_1.png', cut, 'val_1.png cannot be read'),
        ('out/ann_dir/val/val_1.png', cut, 'val_1.png cannot be read'),
        ('out/ann_dir/val/val_1.png', set_label(11), 'val_1.png holds the labels 11 (4 pixels)'),
        ('out/ann_dir/val/val_1.png', shrink, 'val_1.png is 12x16, but this run writes 24x32'),
        ('out/img_dir/val/val_1.png', shrink, 'val_1.png is 12x16, but this run writes 24x32'),
    ],
    'voc': [
        (AUG_LABEL, cut, '2008_000001.png cannot be read'),
        (AUG_LABEL, lambda path: write_image(path, np.zeros(SIZE, np.uint8)), 'png differs from'),
        (
            f'{VOC}/ImageSets/Segmentation/aug.txt',
            lambda path: path.write_text('2008_000001\n2007_000001\n'),
            'aug.txt lacks 3 names of this run and has 1 others',
        ),
    ],
    'cityscapes': [
        (DRAWN_LABEL, cut, 'cannot be read'),
        (DRAWN_LABEL, lambda path: write_image(path, np.full_like(DRAWN, 19)), 'labels 19 (512'),
        (DRAWN_LABEL, lambda path: write_image(path, DRAWN[:8]), '8x32, but its image is 16x32'),
        (DRAWN_LABEL, colour, 'has the mode RGB'),
    ],
}


@pytest.mark.parametrize(('kind', 'path', 'change', 'message'), cases(DAMAGE))
def test_damage_of_an_earlier_result_is_named_and_force_repairs_it(
    kind, path, change, message, changed, run
):
    root = changed(kind)
    complete = state(root)
    change(root / path)
    before = state(root)
    error = run(*command(kind, root), code=1)
    assert f'{path} ' in error
    assert message in error
    assert 'add --force' in error
    assert state(root) == before
    out = run(*command(kind, root), '--force')
    assert f'{int(path.endswith("png"))} were converted now' in out
    after = state(root)
    assert after.pop(path)[0] == complete.pop(path)[0]
    assert after == complete


@pytest.mark.parametrize(
    ('kind', 'path'),
    [
        ('camvid', 'out/ann_dir/val/val_1.png'),
        ('voc', AUG_LABEL),
        pytest.param('cityscapes', DRAWN_LABEL, marks=needs_scripts),
    ],
)
def test_second_run_with_several_processes_makes_only_what_is_missing(
    kind, path, changed, run, monkeypatch
):
    root = changed(kind)
    before = state(root)
    label = root / path
    label.with_name(f'.{label.name}.part').write_bytes(label.read_bytes()[:30])  # of a killed run
    label.unlink()
    others = {'camvid': 6, 'voc': 8, 'cityscapes': 3}[kind]
    # The hardest case: these inherit nothing.
    context = functools.partial(
        ProcessPoolExecutor, mp_context=multiprocessing.get_context('spawn')
    )
    monkeypatch.setattr(sys.modules['_common'], 'ProcessPoolExecutor', context)
    out = run(*command(kind, root), '--jobs', 2)
    assert f'1 were converted now, {others} were there' in out
    after = state(root)
    assert after.pop(path)[0] == before.pop(path)[0]
    assert after == before


def children(process):
    return Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()


def ignores_interrupts(pid):
    (ignored,) = re.findall(r'SigIgn:\s+(\w+)', Path(f'/proc/{pid}/status').read_text())
    return int(ignored, 16) >> signal.SIGINT - 1 & 1


def start_and_hold(root, jobs):
    """Starts a conversion that waits at the last of its nine labels, a pipe nobody writes to."""
    last = root / SBD / f'cls/{AUG[-1]}.mat'
    last.rename(last.with_suffix('.kept'))
    os.mkfifo(last)
    process = start(*command('voc', root), '--jobs', jobs, start_new_session=True)
    while len(list(root.glob(f'{VOC}/SegmentationClassAug/[!.]*.png'))) < 8:
        assert process.poll() is None
        time.sleep(0.01)
    # Processes of --jobs leave interrupts to the first one once they have started.
    for child in children(process) if jobs > 1 else ():
        while not ignores_interrupts(child):
            time.sleep(0.01)
    return process, last


@pytest.mark.parametrize(
    ('signum', 'jobs'), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGKILL, 2)]
)
def test_interrupted_conversion_goes_on(tmp_path, run, signum, jobs):
    make_voc(tmp_path)
    labels = tmp_path / VOC
    process, last = start_and_hold(tmp_path, jobs)
    os.killpg(process.pid, signum)  # as a terminal does, to all processes
    while process.poll() is None:
        with suppress(OSError):  # a process that still reads the pipe comes to its end
            os.close(os.open(last, os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(0.01)
    error = finish(process, 1 if signum == signal.SIGINT else -signum)
    if signum == signal.SIGINT:
        assert error == 'interrupted; the same command goes on from here'
    assert not list(tmp_path.rglob('*aug.txt'))
    finished = state(labels)
    last.with_suffix('.kept').replace(last)
    (labels / f'SegmentationClassAug/.{AUG[-1]}.png.part').write_bytes(b'a half-written file')
    assert '1 were converted now, 8 were there' in run(*command('voc', tmp_path))
    assert finished.items() <= state(labels).items()
    shutil.rmtree(labels / 'SegmentationClassAug')
    done = content(labels)
    run(*command('voc', tmp_path))
    assert done.items() <= content(labels).items()


@pytest.mark.skipif(
    multiprocessing.get_start_method() != 'fork', reason='the children are those of a server'
)
def test_killed_process_of_several_is_told(tmp_path):
    make_voc(tmp_path)
    process, _ = start_and_hold(tmp_path, 2)
    first, _ = children(process)
    os.kill(int(first), signal.SIGKILL)
    (error,) = finish(process, 1).splitlines()
    assert error.startswith('error: a process of --jobs was killed')
