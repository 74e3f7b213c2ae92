from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.conftest import MINI, ROOT

TOOL = 'tools/analysis_tools/check_dataset.py'
SIZES = dict(train=3, val=2)
SPLITS = ('train', 'val', 'test')
CLASSES = np.arange(11, dtype=np.uint8)
#: A line of a label from the masks of an object that are saved as 0 and 255.
MASK = np.uint8([0, 255] * 5 + [0])


@pytest.fixture
def data(tmp_path):
    """Labels of 4 x 11 pixels that hold every class four times; one ignored pixel in train/0."""

    class Data:
        root = tmp_path / 'data'

        def file(self, kind, split, index):
            suffix = dict(img='jpg', ann='png')[kind]
            return self.root / f'{kind}_dir/{split}/{index}.{suffix}'

        def write(self, kind, split, index, array):
            path = self.file(kind, split, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(array, np.uint8)).save(path)

        def write_labels(self, line, *splits):
            """Fill all labels of splits with one line of ids."""
            for split in splits:
                for index in range(SIZES[split]):
                    self.write('ann', split, index, np.tile(line, (4, 1)))

    data = Data()
    for split, count in SIZES.items():
        for index in range(count):
            data.write('img', split, index, np.full((4, 11, 3), 100))
    data.write_labels(CLASSES, *SIZES)
    label = np.tile(CLASSES, (4, 1))
    label[0, 0] = 255
    data.write('ann', 'train', 0, label)
    return data


@pytest.fixture
def check(data, tool, tmp_path):
    """Run the tool on the data; returns what it printed and its report, if there is one."""

    def run(*options, words=(), code=0):
        roots = [f'{split}_dataloader.dataset.data_root={data.root}' for split in SPLITS]
        done = tool(
            *(TOOL, MINI, '--out', tmp_path / 'out/histogram.png'),
            *('--json', tmp_path / 'out/report.json', *words, '--cfg-options', *roots, *options),
        )
        assert done.returncode == code, done.stdout + done.stderr
        report = tmp_path / 'out/report.json'
        return done, json.loads(report.read_text()) if report.exists() else None

    return run


def all_splits(option):
    return [f'{split}_dataloader.dataset.{option}' for split in SPLITS]


def test_good_data_pass_with_their_frequencies(check, tmp_path):
    done, report = check()
    assert 'nothing is wrong' in done.stdout
    assert '3/3' in done.stderr  # the progress bar
    train = report['splits']['train']
    assert train['images'] == train['labels'] == 3
    assert train['class_pixels'] == [11] + [12] * 10
    assert train['class_images'] == [3] * 11
    assert train['ignored_pixels'] == 1
    assert f'| sky | {100 * 11 / 132:.2f} | 100.00 | {100 / 11:.2f} | 100.00 |' in done.stdout
    assert '| ignored | 0.76 | 33.33 | 0.00 | 0.00 |' in done.stdout
    figure = cv2.imread(str(tmp_path / 'out/histogram.png'))
    assert min(figure.shape[:2]) > 300
    assert figure.std() > 10
    check(words=['--force'])  # files are overwritten on demand


def test_faulty_data_end_with_a_table_and_exit_code_1(check, data):
    path = data.file('img', 'train', 0)
    path.write_bytes(path.read_bytes()[:-40])
    label = np.zeros((4, 11))
    label[1, :5], label[2, :2] = 30, 200
    data.write('ann', 'train', 1, label)
    data.write('ann', 'train', 2, np.zeros((11, 4)))
    data.write('ann', 'val', 0, np.zeros((4, 11, 3)))
    data.file('ann', 'val', 1).unlink()
    done, report = check(words=['--splits', 'train', 'val', '--show', 2], code=1)
    outside = 'holds 30 (5 pixels), 200 (2 pixels); allowed are 0 to 10; convert original ids'
    expected = [
        ('train', '0.jpg', 'is truncated'),
        ('train', '2.png', 'is 11x4, but image'),
        ('train', '1.png', outside),
        ('val', '0.png', 'has shape (4, 11, 3), not (H, W)'),
        ('val', '1.png', 'cannot be read (FileNotFoundError'),
    ]
    for problem, (split, file, what) in zip(report['problems'], expected, strict=True):
        assert (problem['split'], Path(problem['file']).name) == (split, file)
        assert problem['what'].startswith(what)
    assert '5 problems' in done.stdout
    assert 'and 3 more' in done.stdout
    assert done.stdout.count('| train | /') == 2


@pytest.mark.parametrize(
    ('shift', 'option', 'expected'),
    [
        (1, 'False', 'the ids seem to start at 1: set reduce_zero_label=True'),
        (0, 'True', 'if the ids start at 0, set reduce_zero_label=False'),
        (1, 'True', None),
    ],
)
def test_wrong_reduce_zero_label(check, data, shift, option, expected):
    data.write_labels(CLASSES + shift, *SIZES)
    code = int(expected is not None)
    _, report = check(*all_splits(f'reduce_zero_label={option}'), code=code)
    assert bool(report['problems']) == bool(code)
    assert all(expected in problem['what'] for problem in report['problems'])


@pytest.mark.parametrize('ignore_index', [255, 254])
@pytest.mark.parametrize(
    ('ids', 'ignored', 'hint'),
    [
        ((0, 255), 50, 'no pixel is of building, pole, .*; the masks are saved as 0 and 255: '),
        ((*range(10), 255), 100 / 11, 'no pixel is of bicyclist, .*convert them to its id'),
    ],
)
def test_a_class_that_is_never_trained_beside_ignored_pixels(
    check, data, ids, ignored, hint, ignore_index
):
    data.write_labels([ignore_index if i == 255 else i for i in ids], 'train')
    for index in range(SIZES['train']):
        data.write('img', 'train', index, np.zeros((4, len(ids), 3)))
    done, report = check(f'train_dataloader.dataset.ignore_index={ignore_index}', code=1)
    (problem,) = report['problems']
    assert (problem['split'], problem['file']) == ('train', '(config)')
    assert re.search(hint, problem['what'])
    assert f'{ignored:.1f} % of the pixels are ignored' in problem['what']
    assert 'nothing is wrong' not in done.stdout
    assert report['splits']['train']['ignored_pixels'] == 12


def test_masks_of_0_and_255_pass_once_converted_as_the_guide_says(check, data, monkeypatch):
    data.write_labels(MASK, *SIZES)
    work_dir = data.root.parent / 'guide'
    (work_dir / 'data/masks').mkdir(parents=True)
    for name in ('drawn', 'ann_dir'):
        (work_dir / 'data/masks' / name).symlink_to(data.root / 'ann_dir')
    guide = (ROOT / 'docs/binary_segmentation.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', guide, re.DOTALL)
    (block,) = [block for block in blocks if 'mask > 127' in block]
    check(code=1)
    monkeypatch.chdir(work_dir)
    exec(block, {})
    _, report = check(words=['--force'])
    assert report['splits']['train']['class_pixels'][:3] == [3 * 4 * 6, 3 * 4 * 5, 0]
    assert report['splits']['train']['ignored_pixels'] == 0


def test_labels_that_are_all_ignored_are_a_problem(check, data):
    data.write_labels(MASK, 'train')
    options = all_splits('reduce_zero_label=True')
    _, report = check(*options, words=['--splits', 'train'], code=1)
    (problem,) = report['problems']
    assert '100.0 % of the pixels are ignored' in problem['what']
    assert 'reduce_zero_label=True ignores 0' in problem['what']


def test_what_need_not_be_wrong_is_noted(check, data):
    data.write_labels(CLASSES % 10, 'train')  # without the last class, but nothing is ignored
    data.write_labels(CLASSES * 0, 'val')
    exif = Image.Exif()
    exif[0x0112] = 3
    path = data.file('img', 'train', 1)
    Image.open(path).save(path, exif=exif)
    done, _ = check(
        'test_dataloader.dataset.data_prefix.img_path=img_dir/train',
        'test_dataloader.dataset.data_prefix.seg_map_path=ann_dir/train',
    )
    for note in (
        'train never shows bicyclist',
        'val never shows building, pole,',
        '3 images of test are in train as well',
        f'1 images have an EXIF orientation, e.g. {path}: they are loaded as',
    ):
        assert f'note: {note}' in done.stdout


def test_links_that_lead_nowhere_are_rows_of_the_table(check, data):
    data.file('ann', 'train', 0).unlink()
    for path in (data.file('img', 'train', 9), data.file('ann', 'train', 0)):
        path.symlink_to(data.root / 'gone')
    data.write('img', 'val', 0, np.zeros((5, 11, 3)))
    _, report = check(words=['--splits', 'train', 'val'], code=1)
    assert [(Path(p['file']).name, p['what'][:14]) for p in report['problems']] == [
        ('0.png', 'cannot be read'),
        ('9.jpg', 'is a link that'),
        ('0.png', 'is 4x11, but i'),
    ]
