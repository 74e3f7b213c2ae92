from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
TOOL = ROOT / 'tools/analysis_tools/check_dataset.py'
SIZES = dict(train=3, val=2)


@pytest.fixture
def data_root(tmp_path):
    """Labels of 4 x 11 pixels that hold every class four times; one ignored pixel in train/0."""
    root = tmp_path / 'data'
    for split, count in SIZES.items():
        for folder in ('img_dir', 'ann_dir'):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            write_image(root, split, index, np.full((4, 11, 3), 100, np.uint8))
            write_label(root, split, index, np.tile(np.arange(11, dtype=np.uint8), (4, 1)))
    label = np.tile(np.arange(11, dtype=np.uint8), (4, 1))
    label[0, 0] = 255
    write_label(root, 'train', 0, label)
    return root


def write_image(root, split, index, image):
    Image.fromarray(image).save(root / f'img_dir/{split}/{index}.jpg')


def write_label(root, split, index, label):
    Image.fromarray(label).save(label_path(root, split, index))


def label_path(root, split, index):
    return root / f'ann_dir/{split}/{index}.png'


@pytest.fixture
def check(data_root, monkeypatch, capfd):
    """Run the tool's main on the data; returns its exit code, its output and its report."""
    monkeypatch.syspath_prepend(TOOL.parent)

    def run(*options, arguments=(), root=data_root):
        monkeypatch.setattr(sys, 'argv', command(root, *options, arguments=arguments))
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as exit_:
            code = 2 if exit_.code == 2 else 1
            if isinstance(exit_.code, str):
                print(exit_.code, file=sys.stderr)
        report = data_root.parent / 'out/report.json'
        output = capfd.readouterr()
        return code, output, json.loads(report.read_text()) if report.exists() else None

    return run


def command(root, *options, arguments=()):
    out = root.parent / 'out'
    roots = [f'{split}_dataloader.dataset.data_root={root}' for split in ('train', 'val', 'test')]
    return [
        *map(str, (TOOL, CONFIG, '--out', out / 'histogram.png', '--json', out / 'report.json')),
        *arguments,
        *('--cfg-options', *roots, *options),
    ]


def test_good_data_pass_with_their_frequencies(data_root):
    done = subprocess.run(
        [sys.executable, *command(data_root)], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'nothing is wrong' in done.stdout
    assert '3/3' in done.stderr  # the progress bar
    report = json.loads((data_root.parent / 'out/report.json').read_text())
    train = report['splits']['train']
    assert train['images'] == train['labels'] == 3
    assert train['class_pixels'] == [11] + [12] * 10
    assert train['class_images'] == [3] * 11
    assert train['ignored_pixels'] == 1
    assert f'| sky | {100 * 11 / 132:.2f} | 100.00 | {100 / 11:.2f} | 100.00 |' in done.stdout
    assert '| ignored | 0.76 | 33.33 | 0.00 | 0.00 |' in done.stdout
    picture = cv2.imread(str(data_root.parent / 'out/histogram.png'))
    assert min(picture.shape[:2]) > 300
    assert picture.std() > 10


def test_faulty_data_end_with_a_table_and_exit_code_1(data_root):
    path = data_root / 'img_dir/train/0.jpg'
    path.write_bytes(path.read_bytes()[:-40])
    label = np.zeros((4, 11), np.uint8)
    label[1, :5], label[2, :2] = 30, 200
    write_label(data_root, 'train', 1, label)
    write_label(data_root, 'train', 2, np.zeros((11, 4), np.uint8))
    write_label(data_root, 'val', 0, np.zeros((4, 11, 3), np.uint8))
    label_path(data_root, 'val', 1).unlink()
    done = subprocess.run(
        [
            sys.executable,
            *command(data_root, arguments=('--splits', 'train', 'val', '--show', '2')),
        ],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    report = json.loads((data_root.parent / 'out/report.json').read_text())
    expected = [
        ('train', '0.jpg', 'is truncated'),
        ('train', '2.png', 'is 11x4, but image'),
        (
            'train',
            '1.png',
            'holds 30 (5 pixels), 200 (2 pixels); allowed are 0 to 10; convert original ids',
        ),
        ('val', '0.png', 'has shape (4, 11, 3), not (H, W)'),
        ('val', '1.png', 'cannot be read (FileNotFoundError'),
    ]
    for problem, (split, file, what) in zip(report['problems'], expected, strict=True):
        assert problem['split'] == split
        assert Path(problem['file']).name == file
        assert what in problem['what']
    assert '5 problems' in done.stdout
    assert 'and 3 more' in done.stdout
    assert done.stdout.count('| train | /') == 2
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    ('shift', 'option', 'expected'),
    [
        (1, 'False', 'the ids seem to start at 1: set reduce_zero_label=True'),
        (0, 'True', 'if the ids start at 0, set reduce_zero_label=False'),
        (1, 'True', None),
    ],
)
def test_wrong_reduce_zero_label(check, data_root, shift, option, expected):
    for split, count in SIZES.items():
        for index in range(count):
            label = np.tile(np.arange(11, dtype=np.uint8) + shift, (4, 1))
            write_label(data_root, split, index, label)
    code, _, report = check(
        *(
            f'{split}_dataloader.dataset.reduce_zero_label={option}'
            for split in ('train', 'val', 'test')
        )
    )
    assert code == (expected is not None)
    assert bool(report['problems']) == (expected is not None)
    assert all(expected in problem['what'] for problem in report['problems'])


@pytest.mark.parametrize('options', [(), ('train_dataloader.dataset.ignore_index=254',)])
@pytest.mark.parametrize(
    ('ids', 'ignored', 'hint'),
    [
        ((0, 255), 50, 'no pixel is of building, pole, .*; the masks are saved as 0 and 255: '),
        ((*range(10), 255), 100 / 11, 'no pixel is of bicyclist, .*convert them to its id'),
    ],
)
def test_a_class_that_is_never_trained_beside_ignored_pixels(
    check, data_root, ids, ignored, hint, options
):
    ids = [254 if options and i == 255 else i for i in ids]
    for index in range(SIZES['train']):
        write_label(data_root, 'train', index, np.tile(np.array(ids, np.uint8), (4, 1)))
    for index in range(SIZES['train']):
        write_image(data_root, 'train', index, np.zeros((4, len(ids), 3), np.uint8))
    code, output, report = check(*options)
    assert code == 1
    (problem,) = report['problems']
    assert (problem['split'], problem['file']) == ('train', '(config)')
    assert re.search(hint, problem['what'])
    assert f'{ignored:.1f} % of the pixels are ignored' in problem['what']
    assert 'nothing is wrong' not in output.out
    assert report['splits']['train']['ignored_pixels'] == 12


def test_masks_of_0_and_255_pass_once_converted_as_the_guide_says(check, data_root, monkeypatch):
    for split, count in SIZES.items():
        for index in range(count):
            write_label(data_root, split, index, np.tile(np.uint8([0, 255] * 5 + [0]), (4, 1)))
    work_dir = data_root.parent / 'guide'
    (work_dir / 'data').mkdir(parents=True)
    (work_dir / 'data/own').symlink_to(data_root)
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/data.md').read_text(), re.DOTALL)
    (block,) = [block for block in blocks if 'ids == 255' in block]
    assert check()[0] == 1
    monkeypatch.chdir(work_dir)
    exec(block, {})
    code, output, report = check(arguments=['--force'])
    assert code == 0, output
    assert report['splits']['train']['class_pixels'][:3] == [3 * 4 * 6, 3 * 4 * 5, 0]
    assert report['splits']['train']['ignored_pixels'] == 0


def test_labels_that_are_all_ignored_are_a_problem(check, data_root):
    for index in range(SIZES['train']):
        write_label(data_root, 'train', index, np.tile(np.uint8([0, 255] * 5 + [0]), (4, 1)))
    splits = ('train', 'val', 'test')
    code, _, report = check(
        *(f'{split}_dataloader.dataset.reduce_zero_label=True' for split in splits),
        arguments=['--splits', 'train'],
    )
    assert code == 1
    (problem,) = report['problems']
    assert '100.0 % of the pixels are ignored' in problem['what']
    assert 'reduce_zero_label=True ignores 0' in problem['what']


def test_a_class_that_is_never_trained_alone_is_a_note(check, data_root):
    for index in range(SIZES['train']):
        write_label(data_root, 'train', index, np.tile(np.arange(11, dtype=np.uint8) % 10, (4, 1)))
    code, output, _ = check()
    assert code == 0
    assert 'note: train never shows bicyclist' in output.out


def test_images_that_viewers_turn_are_noted(check, data_root):
    exif = Image.Exif()
    exif[0x0112] = 3
    path = data_root / 'img_dir/train/1.jpg'
    Image.open(path).save(path, exif=exif)
    code, output, _ = check()
    assert code == 0
    assert f'note: 1 images have an EXIF orientation, e.g. {path}: they are loaded as' in output.out


def test_contradicting_settings_are_problems(check):
    code, _, report = check('val_dataloader.dataset.pipeline.1.reduce_zero_label=True')
    assert code == 1
    (problem,) = report['problems']
    assert (problem['split'], problem['file']) == ('val', '(config)')
    assert 'reduce_zero_label is True in LoadSegAnnotations but False in the' in problem['what']


def test_classes_that_are_not_the_models_end_in_one_line(check):
    code, output, report = check('model.decode_head.num_classes=12')
    assert (code, report) == (1, None)
    line = output.err.splitlines()[-1]
    assert line.startswith('error: model.decode_head.num_classes is 12')
    assert 'is 11' in line


def test_shared_images_and_missing_classes_are_noted(check, data_root):
    for index in range(2):
        write_label(data_root, 'val', index, np.zeros((4, 11), np.uint8))
    code, output, _ = check(
        'test_dataloader.dataset.data_prefix.img_path=img_dir/train',
        'test_dataloader.dataset.data_prefix.seg_map_path=ann_dir/train',
    )
    assert code == 0
    assert 'note: 3 images of test are in train as well' in output.out
    assert 'note: val never shows building, pole,' in output.out


def test_links_that_lead_nowhere_are_rows_of_the_table(check, data_root):
    label_path(data_root, 'train', 0).unlink()
    for path in (data_root / 'img_dir/train/9.jpg', label_path(data_root, 'train', 0)):
        path.symlink_to(data_root / 'gone')
    write_image(data_root, 'val', 0, np.zeros((5, 11, 3), np.uint8))
    code, _, report = check(arguments=['--splits', 'train', 'val'])
    assert code == 1
    assert [(Path(p['file']).name, p['what'][:14]) for p in report['problems']] == [
        ('0.png', 'cannot be read'),
        ('9.jpg', 'is a link that'),
        ('0.png', 'is 4x11, but i'),
    ]


def test_folders_that_cannot_be_listed_end_in_one_line(check, data_root):
    (data_root / 'img_dir/train/again').symlink_to(data_root / 'img_dir')
    code, output, report = check()
    assert (code, report) == (1, None)
    assert 'leads back to a folder above it' in output.err.splitlines()[-1]


def test_nothing_is_overwritten_and_wrong_input_ends_in_one_line(check, data_root):
    assert check()[0] == 0
    code, output, _ = check()
    assert code == 1
    assert 'exists; add --force to replace it' in output.err.splitlines()[-1]
    assert check(arguments=['--force'])[0] == 0
    code, output, _ = check(root=data_root / 'gone')
    assert code == 1
    assert output.err.splitlines()[-1].startswith('error: data root')
    assert check(arguments=['--workers', '0'])[0] == 2
