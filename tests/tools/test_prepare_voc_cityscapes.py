from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from mmseg.registry import DATASETS
from PIL import Image
from scipy.io import savemat

TOOLS = Path(__file__).parents[2] / 'tools' / 'dataset_converters'
needs_scripts = pytest.mark.skipif(
    importlib.util.find_spec('cityscapesscripts') is None,
    reason='cityscapesscripts is not installed',
)


def start(tool, *arguments, **kwargs):
    return subprocess.Popen(
        [sys.executable, str(TOOLS / tool), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **kwargs,
    )


def finish(process, code):
    out, err = process.communicate()
    assert process.returncode == code, out + err
    return out, err


def run(tool, *arguments):
    return finish(start(tool, *arguments), 0)[0]


def fail(tool, *arguments, code=1):
    """Runs a tool that must end with an error of one line, and returns it."""
    _, error = finish(start(tool, *arguments), code)
    if code == 1:
        assert len(error.strip().splitlines()) == 1, error
    return error


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


def table(out):
    return {line[:20].strip(): line[20:].split() for line in out.splitlines()}


def check_table(out, classes, labels):
    """Holds the printed histogram to the label maps of each split, given in the printed order."""
    rows = table(out)
    for value, name in [*enumerate(classes), (255, 'ignored')]:
        numbers = rows[f'{value} {name}']
        assert len(numbers) == 2 * len(labels)
        for i, maps in enumerate(labels):
            share = np.mean(np.concatenate([m.ravel() for m in maps]) == value) if maps else 0
            assert float(numbers[2 * i]) == pytest.approx(100 * share, abs=0.0051)
            assert int(numbers[2 * i + 1]) == sum((m == value).any() for m in maps)


def build(kind, root, img_path, seg_map_path, ann_file=''):
    return DATASETS.build(
        dict(
            type=kind,
            data_root=str(root),
            data_prefix=dict(img_path=img_path, seg_map_path=seg_map_path),
            ann_file=ann_file,
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
        )
    )


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


# --- voc_aug.py

VOC_TRAIN, VOC_VAL = ['2007_000001', '2007_000002', '2007_000003'], ['2007_000011', '2007_000012']
SBD_TRAIN = ['2008_000001', '2008_000002', '2007_000001', '2007_000011']
SBD_VAL = ['2008_000003', '2007_000002', '2007_000012', '2008_000004']
AUG = ['2008_000001', '2008_000002', '2008_000003', '2008_000004']
SIZE = (12, 16)


def save_mat(path, label):
    """Writes a label as SBD does: beside it the boundaries and the categories."""
    struct = dict(Segmentation=label, Boundaries=np.zeros((20, 1)), CategoriesPresent=[1, 2])
    savemat(path, {'GTcls': struct}, do_compression=True)


def make_voc(root):
    """Makes VOC 2012 and SBD with the same images and labels of their own."""
    rng = np.random.default_rng(0)
    voc, sbd = root / 'VOCdevkit' / 'VOC2012', root / 'benchmark_RELEASE' / 'dataset'
    lists = voc / 'ImageSets' / 'Segmentation'
    for folder in (lists, voc / 'JPEGImages', voc / 'SegmentationClass', sbd / 'cls'):
        folder.mkdir(parents=True)
    for path, names in (
        (lists / 'train.txt', VOC_TRAIN),
        (lists / 'val.txt', VOC_VAL),
        (sbd / 'train.txt', SBD_TRAIN),
        (sbd / 'val.txt', SBD_VAL),
    ):
        path.write_text(''.join(f'{name}\n' for name in names))
    for name in [*VOC_TRAIN, *VOC_VAL, *AUG]:
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(image).save(voc / 'JPEGImages' / f'{name}.jpg')
    for name in [*VOC_TRAIN, *VOC_VAL]:
        label = rng.integers(0, 22, SIZE, dtype=np.uint8)
        picture = Image.fromarray(np.where(label == 21, 255, label).astype(np.uint8))
        picture.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tolist())
        picture.save(voc / 'SegmentationClass' / f'{name}.png')
    for name in [*SBD_TRAIN, *SBD_VAL]:
        label = rng.integers(0, 21, SIZE, dtype=np.uint8)
        save_mat(sbd / 'cls' / f'{name}.mat', label)
        np.save(root / f'{name}.npy', label)
    return voc, sbd


@pytest.fixture
def voc_sbd(tmp_path):
    return make_voc(tmp_path)


@pytest.fixture(scope='module')
def converted_voc(tmp_path_factory):
    """VOC and SBD after a conversion, not to be changed, and what the tool printed."""
    root = tmp_path_factory.mktemp('voc')
    voc, sbd = make_voc(root)
    return root, voc, sbd, run('voc_aug.py', voc, sbd, '--expect', 7)


@pytest.fixture
def changed_voc(converted_voc, tmp_path):
    """A copy of the conversion, to be tampered with."""
    root, voc, sbd, _ = converted_voc
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return tmp_path / voc.relative_to(root), tmp_path / sbd.relative_to(root)


def test_lists_are_voc_and_sbd_without_val(converted_voc):
    _, voc, _, out = converted_voc
    folder = voc / 'ImageSets' / 'Segmentation'
    assert (folder / 'aug.txt').read_text().split() == AUG
    assert (folder / 'trainaug.txt').read_text().split() == [*VOC_TRAIN, *AUG]
    assert (folder / 'train.txt').read_text().split() == VOC_TRAIN
    assert out.splitlines()[-1] == 'aug.txt: 4 names, trainaug.txt: 7 names'


def test_labels_are_sbds_where_voc_has_none_and_voc_datasets_read_them(converted_voc):
    root, voc, _, _ = converted_voc
    lists = 'ImageSets/Segmentation/{}.txt'
    aug = build('PascalVOCDataset', voc, 'JPEGImages', 'SegmentationClassAug', lists.format('aug'))
    assert [Path(item['img_path']).stem for item in aug] == AUG
    for item, name in zip(aug, AUG, strict=True):
        np.testing.assert_array_equal(item['gt_seg_map'], np.load(root / f'{name}.npy'))
        assert item['img'].shape == (*SIZE, 3)
    for name, length in (('trainaug', 7), ('val', 2)):
        dataset = build(
            'PascalVOCDataset', voc, 'JPEGImages', 'SegmentationClassAug', lists.format(name)
        )
        assert len(dataset) == length
        own = [item for item in dataset if Path(item['img_path']).stem not in AUG]
        assert len(own) == {'trainaug': 3, 'val': 2}[name]
        for item in own:
            source = voc / 'SegmentationClass' / Path(item['seg_map_path']).name
            np.testing.assert_array_equal(item['gt_seg_map'], read(source))
            assert (item['gt_seg_map'] == 255).any()
    assert len(list((voc / 'SegmentationClassAug').iterdir())) == 9


def test_labels_are_palette_images_in_vocs_colours(converted_voc):
    voc = converted_voc[1]
    colours = np.array(DATASETS.get('PascalVOCDataset').METAINFO['palette']).ravel().tolist()
    for path in (voc / 'SegmentationClassAug').iterdir():
        label = Image.open(path)
        assert label.mode == 'P'
        assert label.getpalette()[:63] == colours


def test_voc_ends_with_counts_and_a_histogram(converted_voc):
    _, voc, _, out = converted_voc
    labels = [
        [read(voc / 'SegmentationClassAug' / f'{name}.png') for name in names]
        for names in (VOC_TRAIN, VOC_VAL, AUG)
    ]
    check_table(out, DATASETS.get('PascalVOCDataset').METAINFO['classes'], labels)
    assert 'labels: 3 train, 2 val, 4 aug\n' in out
    assert '9 were converted now, 0 were there' in out
    assert '9/9' in out  # the progress bar


def test_folders_above_are_accepted_and_out_is_another_folder(voc_sbd, tmp_path):
    voc, sbd = voc_sbd
    before = state(voc)
    out = tmp_path / 'out'
    run('voc_aug.py', voc.parent, sbd.parent, '--out', out, '--expect', 7)
    assert state(voc) == before
    assert {path.name for path in out.rglob('*.txt')} == {'aug.txt', 'trainaug.txt'}
    assert len(list((out / 'SegmentationClassAug').iterdir())) == 9


def test_second_run_keeps_all_and_several_processes_give_the_same(changed_voc, tmp_path):
    voc, sbd = changed_voc
    before = state(voc)
    out = run('voc_aug.py', voc, sbd, '--expect', 7)
    assert '0 were converted now, 9 were there' in out
    assert state(voc) == before
    again = run('voc_aug.py', voc, sbd, '--expect', 7, '--out', tmp_path / 'out', '--jobs', 2)
    assert table(again)['20 tvmonitor'] == table(out)['20 tvmonitor']
    made = content(tmp_path / 'out')
    assert len(made) == 11
    assert made == {name: digest for name, (digest, _) in before.items() if name in made}


def test_another_number_of_names_is_an_error_with_the_way_out(voc_sbd):
    voc, sbd = voc_sbd
    before = state(voc)
    error = fail('voc_aug.py', voc, sbd)
    assert 'gets 7 names (3 of VOC, 4 of SBD) instead of 10582' in error
    assert '--expect 7' in error
    assert state(voc) == before


@pytest.mark.parametrize(
    ('path', 'change', 'message'),
    [
        ('sbd/cls/2008_000002.mat', remove, 'cls lacks the .mat file of 2008_000002; restore it'),
        ('sbd/cls/2007_000011.mat', remove, 'cls lacks the .mat file of 2007_000011; restore it'),
        ('sbd/cls/2008_000002.mat', cut, '2008_000002.mat cannot be read as GTcls.Segmentation'),
        ('sbd/cls', shutil.rmtree, 'dataset has no folder cls; give the folder dataset of SBD'),
        ('sbd/train.txt', remove, 'dataset/train.txt is missing; restore it'),
        (
            'sbd/cls/2008_000002.mat',
            lambda path: save_mat(path, np.full(SIZE, 21, np.uint8)),
            '2008_000002.mat holds the labels 21 (192 pixels); allowed are 0 to 20; restore',
        ),
        (
            'sbd/cls/2008_000002.mat',
            lambda path: save_mat(path, np.full(SIZE, 300)),
            '2008_000002.mat holds an array of shape (12, 16) and type int64, not a map',
        ),
        (
            'sbd/cls/2008_000002.mat',
            lambda path: save_mat(path, np.zeros((16, 12), np.uint8)),
            '2008_000002.mat is 16x12, but',
        ),
        (
            'sbd/cls/2008_000002.mat',
            lambda path: savemat(path, {'GTinst': 1}),
            "2008_000002.mat cannot be read as GTcls.Segmentation (KeyError: 'GTcls')",
        ),
        ('voc/ImageSets', shutil.rmtree, 'has no folder ImageSets/Segmentation; give the folder'),
        ('voc/JPEGImages', shutil.rmtree, '2007_000011, 2007_000012 and 4 more'),
        (
            'voc/SegmentationClass/2007_000002.png',
            remove,
            'SegmentationClass lacks the label of 2007_000002',
        ),
        ('voc/SegmentationClass/2007_000002.png', cut, 'Class/2007_000002.png cannot be read'),
        (
            'voc/SegmentationClass/2007_000002.png',
            lambda path: Image.open(path).convert('RGB').save(path),
            '2007_000002.png has the mode RGB, not one channel',
        ),
    ],
)
def test_faults_of_voc_and_sbd_are_named_and_no_list_is_written(voc_sbd, path, change, message):
    folder, name = path.split('/', 1)
    change(dict(zip(('voc', 'sbd'), voc_sbd, strict=True))[folder] / name)
    error = fail('voc_aug.py', *voc_sbd, '--expect', 7)
    assert message in error
    assert not list(voc_sbd[0].rglob('*aug.txt'))


@pytest.mark.parametrize(
    ('path', 'change', 'message'),
    [
        ('SegmentationClassAug/2008_000001.png', cut, '2008_000001.png cannot be read'),
        (
            'SegmentationClassAug/2008_000001.png',
            lambda path: Image.fromarray(np.zeros(SIZE, np.uint8)).save(path),
            'Aug/2008_000001.png differs from',
        ),
        (
            'ImageSets/Segmentation/aug.txt',
            lambda path: path.write_text('2008_000001\n2007_000001\n'),
            'aug.txt lacks 3 names of this run and has 1 others',
        ),
    ],
)
def test_nothing_of_an_earlier_result_is_replaced_without_force(changed_voc, path, change, message):
    voc, sbd = changed_voc
    change(voc / path)
    before = state(voc)
    error = fail('voc_aug.py', voc, sbd, '--expect', 7)
    assert message in error
    assert 'add --force' in error
    assert state(voc) == before


def test_force_replaces_what_is_damaged_or_different_and_nothing_else(changed_voc):
    voc, sbd = changed_voc
    complete = state(voc)
    labels, lists = 'SegmentationClassAug', 'ImageSets/Segmentation'
    changed = [f'{labels}/2008_000001.png', f'{labels}/2007_000001.png', f'{lists}/aug.txt']
    cut(voc / changed[0])
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(voc / changed[1])
    (voc / changed[2]).write_text('2008_000001')
    out = run('voc_aug.py', voc, sbd, '--expect', 7, '--force')
    assert '2 were converted now, 7 were there' in out
    after = state(voc)
    for name in changed:
        assert after.pop(name)[0] == complete.pop(name)[0]
    assert after == complete


def test_grey_labels_and_other_order_of_a_list_are_the_same_result(changed_voc):
    voc, sbd = changed_voc
    label = voc / 'SegmentationClassAug' / '2008_000001.png'
    Image.fromarray(read(label)).save(label)
    (voc / 'ImageSets' / 'Segmentation' / 'aug.txt').write_text('\n'.join(AUG[::-1]))
    before = state(voc)
    run('voc_aug.py', voc, sbd, '--expect', 7)
    assert state(voc) == before


def children(process):
    return Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()


def ignores_interrupts(pid):
    (ignored,) = re.findall(r'SigIgn:\s+(\w+)', Path(f'/proc/{pid}/status').read_text())
    return int(ignored, 16) >> signal.SIGINT - 1 & 1


def start_and_hold(voc, sbd, jobs):
    """Starts a conversion that waits at the last of its nine labels, a pipe nobody writes to."""
    last = sbd / 'cls' / f'{AUG[-1]}.mat'
    last.rename(last.with_suffix('.kept'))
    os.mkfifo(last)
    arguments = ('voc_aug.py', voc, sbd, '--expect', 7, '--jobs', jobs)
    process = start(*arguments, start_new_session=True)
    while len(list(voc.glob('SegmentationClassAug/[!.]*.png'))) < 8:
        assert process.poll() is None
        time.sleep(0.01)
    # Processes of --jobs leave interrupts to the first one once they have started.
    for child in children(process) if jobs > 1 else ():
        while not ignores_interrupts(child):
            time.sleep(0.01)
    return process, arguments, last


@pytest.mark.parametrize(
    ('signum', 'jobs'), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGKILL, 2)]
)
def test_interrupted_conversion_goes_on(voc_sbd, converted_voc, signum, jobs):
    voc, sbd = voc_sbd
    process, arguments, last = start_and_hold(voc, sbd, jobs)
    os.killpg(process.pid, signum)  # as a terminal does, to all processes
    while process.poll() is None:
        with suppress(OSError):  # a process that still reads the pipe comes to its end
            os.close(os.open(last, os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(0.01)
    _, error = finish(process, 1 if signum == signal.SIGINT else -signum)
    if signum == signal.SIGINT:
        assert error.strip() == 'interrupted; the same command goes on from here'
    assert not list(voc.rglob('*aug.txt'))
    finished = state(voc)
    last.with_suffix('.kept').replace(last)
    half = voc / 'SegmentationClassAug' / f'.{AUG[-1]}.png.part'
    half.write_bytes(b'a half-written file')
    assert '1 were converted now, 8 were there' in run(*arguments)
    assert content(voc) == content(converted_voc[1])
    assert finished.items() <= state(voc).items()


@pytest.mark.skipif(
    multiprocessing.get_start_method() != 'fork', reason='the children are those of a server'
)
def test_killed_process_of_several_is_told(voc_sbd):
    process, _, _ = start_and_hold(*voc_sbd, 2)
    first, _ = children(process)
    os.kill(int(first), signal.SIGKILL)
    _, error = finish(process, 1)
    assert error.strip().startswith('error: a process of --jobs was killed')
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(('option', 'value'), [('--expect', '0'), ('--jobs', 'two')])
def test_wrong_numbers(tmp_path, option, value):
    error = fail('voc_aug.py', tmp_path, tmp_path, option, value, code=2)
    assert error.splitlines()[-1].endswith(
        f'argument {option}: {value!r} is not a number of 1 or more'
    )


# --- cityscapes.py

FRAMES = {'train': 2, 'val': 1, 'test': 1}


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
    path.write_text(json.dumps(dict(imgHeight=height, imgWidth=width, objects=objects)))


def make_cityscapes(root, frames=FRAMES):
    rng = np.random.default_rng(0)
    for split, count in frames.items():
        city = {'train': 'aachen', 'val': 'munster', 'test': 'berlin'}[split]
        for folder in ('leftImg8bit', 'gtFine'):
            (root / folder / split / city).mkdir(parents=True)
        for number in range(count):
            name = f'{split}/{city}/{city}_{number:06d}_000019'
            image = rng.integers(0, 256, (16, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / 'leftImg8bit' / f'{name}_leftImg8bit.png')
            objects = OBJECTS if split != 'test' else OBJECTS[2:3]
            write_polygons(root / 'gtFine' / f'{name}_gtFine_polygons.json', objects)
    return root


@pytest.fixture
def cityscapes(tmp_path):
    return make_cityscapes(tmp_path / 'cityscapes')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """Cityscapes after a conversion, not to be changed, and what the tool printed."""
    root = make_cityscapes(tmp_path_factory.mktemp('drawn') / 'cityscapes')
    return root, *finish(start('cityscapes.py', root), 0)


@pytest.fixture
def changed_cityscapes(drawn, tmp_path):
    """A copy of the conversion, to be tampered with."""
    return Path(shutil.copytree(drawn[0], tmp_path / 'cityscapes'))


@needs_scripts
def test_train_ids_are_drawn_as_cityscapes_dataset_reads_them(drawn):
    for split in ('train', 'val'):
        dataset = build('CityscapesDataset', drawn[0], f'leftImg8bit/{split}', f'gtFine/{split}')
        assert len(dataset) == FRAMES[split]
        for item in dataset:
            np.testing.assert_array_equal(item['gt_seg_map'], DRAWN)
            assert item['img'].shape == (16, 32, 3)
    for path in drawn[0].glob('gtFine/test/*/*.png'):
        assert (read(path) == 255).all()
    assert len(list(drawn[0].rglob('*_labelTrainIds.png'))) == 4


@needs_scripts
def test_train_ids_equal_those_of_cityscapes_own_converter(drawn, tmp_path):
    module = 'cityscapesscripts.preparation.json2labelImg'
    own = tmp_path / 'own.png'
    for path in drawn[0].glob('gtFine/*/*/*.json'):
        subprocess.run([sys.executable, '-m', module, '-t', path, own], check=True)
        ours = path.with_name(path.name.replace('polygons.json', 'labelTrainIds.png'))
        np.testing.assert_array_equal(read(ours), read(own))


@needs_scripts
def test_cityscapes_ends_with_counts_and_a_histogram(drawn):
    root, out, err = drawn
    labels = [[read(path) for path in root.glob(f'gtFine/{split}/*/*.png')] for split in FRAMES]
    check_table(out, DATASETS.get('CityscapesDataset').METAINFO['classes'], labels)
    assert 'labels: 2 train, 1 val, 1 test\n' in out
    assert '4 were converted now, 0 were there' in out
    assert '4/4' in out  # the progress bar
    assert err.strip() == (
        'warning: train has 2 frames instead of 2975, val has 1 frames instead of 500, test has '
        '1 frames instead of 1525; is the release complete?'
    )


@needs_scripts
def test_strict_refuses_another_number_of_frames(cityscapes):
    before = state(cityscapes)
    error = fail('cityscapes.py', cityscapes, '--strict')
    assert 'train has 2 frames instead of 2975' in error
    assert 'leave out --strict' in error
    assert state(cityscapes) == before


@needs_scripts
def test_train_and_val_alone_are_accepted(tmp_path):
    root = make_cityscapes(tmp_path, {'train': 1, 'val': 1})
    out, err = finish(start('cityscapes.py', root), 0)
    assert 'labels: 1 train, 1 val, 0 test\n' in out
    assert 'test has 0 frames instead of 1525' in err


@needs_scripts
def test_second_run_draws_only_what_is_missing(changed_cityscapes):
    before = state(changed_cityscapes)
    missing = 'gtFine/val/munster/munster_000000_000019_gtFine_labelTrainIds.png'
    label = changed_cityscapes / missing
    label.with_name(f'.{label.name}.part').write_bytes(label.read_bytes()[:30])  # of a killed run
    label.unlink()
    out = run('cityscapes.py', changed_cityscapes, '--jobs', 2)
    assert '1 were converted now, 3 were there' in out
    after = state(changed_cityscapes)
    assert after.pop(missing)[0] == before.pop(missing)[0]
    assert after == before


@needs_scripts
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (cut, 'cannot be read'),
        (lambda path: Image.fromarray(np.full_like(DRAWN, 19)).save(path), 'labels 19 (512'),
        (lambda path: Image.fromarray(DRAWN[:8]).save(path), 'is 8x32, but its image is 16x32'),
        (lambda path: Image.fromarray(DRAWN).convert('RGB').save(path), 'has the mode RGB'),
    ],
)
def test_damaged_train_ids_are_named_and_left(changed_cityscapes, change, message):
    name = 'gtFine/val/munster/munster_000000_000019_gtFine_labelTrainIds.png'
    change(changed_cityscapes / name)
    before = state(changed_cityscapes)
    error = fail('cityscapes.py', changed_cityscapes)
    assert f'{name} ' in error
    assert message in error
    assert 'add --force' in error
    assert state(changed_cityscapes) == before


@needs_scripts
def test_force_replaces_damaged_train_ids_and_nothing_else(changed_cityscapes):
    complete = state(changed_cityscapes)
    name = 'gtFine/val/munster/munster_000000_000019_gtFine_labelTrainIds.png'
    cut(changed_cityscapes / name)
    assert '1 were converted now' in run('cityscapes.py', changed_cityscapes, '--force')
    after = state(changed_cityscapes)
    assert after.pop(name)[0] == complete.pop(name)[0]
    assert after == complete


TRAIN = 'gtFine/train/aachen/aachen_000001_000019_gtFine_polygons.json'
TRAIN_IMAGE = 'leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png'


@needs_scripts
@pytest.mark.parametrize(
    ('path', 'change', 'message'),
    [
        (
            TRAIN,
            remove,
            'gtFine/train lacks the *_gtFine_polygons.json of aachen/aachen_000001_000019; restore',
        ),
        (
            TRAIN_IMAGE,
            remove,
            'leftImg8bit/train lacks the *_leftImg8bit.png of aachen/aachen_000001_000019; restore',
        ),
        ('leftImg8bit/val', shutil.rmtree, 'val lacks the *_leftImg8bit.png of munster/munster_0'),
        (TRAIN, cut, 'aachen_000001_000019_gtFine_polygons.json cannot be drawn (JSONDecodeError'),
        (TRAIN, lambda path: path.write_text('{}'), "cannot be drawn (KeyError: 'imgWidth')"),
        (
            TRAIN,
            lambda path: write_polygons(path, [box('boat', 0, 0, 1, 1), box('car', 0, 0, 1, 1)]),
            'polygons.json holds the labels boat, which are none of Cityscapes',
        ),
        (
            TRAIN,
            lambda path: write_polygons(path, [dict(label='car', polygon=[])]),
            'aachen_000001_000019_gtFine_polygons.json cannot be drawn',
        ),
        (TRAIN, lambda path: write_polygons(path, OBJECTS, 32, 16), 'is for 32x16, but its image'),
        (TRAIN_IMAGE, lambda path: path.write_text('x'), '_leftImg8bit.png cannot be read'),
    ],
)
def test_faults_of_cityscapes_are_named(cityscapes, path, change, message):
    change(cityscapes / path)
    assert message in fail('cityscapes.py', cityscapes)
    assert not list(cityscapes.glob('gtFine/train/*/*_000001_*.png'))


@needs_scripts
def test_wrong_folder_of_cityscapes(tmp_path):
    error = fail('cityscapes.py', tmp_path)
    assert f'{tmp_path} holds no leftImg8bit/' in error
    assert 'into which Cityscapes was unpacked' in error


def test_missing_cityscapesscripts_is_one_line_with_the_command(cityscapes, tmp_path):
    block = tmp_path / 'block' / 'cityscapesscripts'
    block.mkdir(parents=True)
    (block / '__init__.py').write_text('raise ImportError("no such package")')
    environment = {**os.environ, 'PYTHONPATH': str(block.parent)}
    _, error = finish(start('cityscapes.py', cityscapes, env=environment), 1)
    assert error.strip() == (
        'error: cityscapesscripts cannot be imported (no such package); '
        'run: pip install cityscapesscripts'
    )
    help_text, _ = finish(start('cityscapes.py', '--help', env=environment), 0)
    assert 'CITYSCAPES_DIR' in help_text
