"""What a user of the tools sees of faulty files, with data loaders that have workers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from tests.conftest import MINI, ROOT

SPLITS = ('train', 'val', 'test')
TRAIN, VAL = 4, 3


@pytest.fixture(scope='module')
def good(mini_data, tmp_path_factory):
    """A dataset without faults, and with names that are not ASCII."""
    root = tmp_path_factory.mktemp('dätä数据') / 'good'
    shutil.copytree(mini_data(train=TRAIN, val=VAL), root)
    for folder in root.glob('*_dir/*'):
        for index, file in enumerate(sorted(folder.iterdir())):
            file.rename(file.with_name(f'é{index}{file.suffix}'))
    return root


def copy_bad(good, root):
    """Copy it; a training image is empty, and a validation image cut off."""
    shutil.copytree(good, root)
    (root / 'img_dir/train/é1.jpg').write_bytes(b'')
    cut = root / 'img_dir/val/é1.jpg'
    cut.write_bytes(cut.read_bytes()[:700])
    return root


@pytest.fixture
def bad(good, tmp_path):
    return copy_bad(good, tmp_path / 'bäd')


@pytest.fixture(scope='module')
def words(run_options):
    """The command line of a tool for a tiny run."""

    def words(root, *arguments, workers=2, work_dir, config=MINI):
        options = run_options(root, *(f'{s}_dataloader.num_workers={workers}' for s in SPLITS))
        if root is None:
            options = [word for word in options if not word.endswith('data_root=None')]
        return [config, *arguments, '--work-dir', work_dir, *options]

    return words


@pytest.fixture(scope='module')
def trained(good, run_tool, words, tmp_path_factory):
    """A training that goes on without faulty files; its folder, its data and what it printed."""
    root = copy_bad(good, tmp_path_factory.mktemp('skip') / 'bäd')
    folder = tmp_path_factory.mktemp('train')
    words = words(root, '--data-faults', 'skip', work_dir=folder)
    return folder, root, run_tool('tools/train.py', *words)


@pytest.fixture
def evaluate(tool, words, tmp_path, trained):
    """Run tools/test.py; returns its metrics and what it printed, or the message it ends with."""

    def evaluate(root, *arguments, **options):
        folder = tmp_path / f'test{len(list(tmp_path.iterdir()))}'
        arguments = words(root, trained[0] / 'iter_4.pth', *arguments, work_dir=folder, **options)
        done = tool('tools/test.py', *arguments)
        if done.returncode:
            return done.stderr.splitlines()[-1]
        return json.loads(next(folder.glob('*/*.json')).read_text()), done.stdout

    return evaluate


def test_skipping_in_training_and_validation(trained):
    _, root, printed = trained
    assert printed.count(f'Skipped from now on: image {root}/img_dir/train/é1.jpg is empty') == 1
    assert re.search(r'Faulty files skipped up to iteration \d: 1, in \d', printed)
    assert '1 of 3 images are left out:' in printed
    for iteration in (2, 4):
        assert f'mIoU after iteration {iteration} is over 2 of 3 images; left out: ' in printed


def test_stopping_ends_with_the_file(bad, words, tmp_path):
    """In a process of its own: in the plain locale, and with what the stack says at import."""
    done = subprocess.run(
        map(str, [sys.executable, ROOT / 'tools/train.py', *words(bad, work_dir=tmp_path / 'run')]),
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'LC_ALL': 'C', 'OMP_NUM_THREADS': '1'},
        encoding='utf-8',
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.match(r'config +\S+mini\S+\n', done.stdout)  # nothing of the stack comes before
    (line,) = done.stderr.splitlines()
    assert line.startswith((
        f'error: image {bad}/img_dir/train/é1.jpg is empty (0 bytes)',
        f'error: image {bad}/img_dir/val/é1.jpg is truncated: its 700 bytes end before',
    ))  # fmt: skip


def test_a_test_notices_what_its_stock_pipeline_would_not(good, bad, evaluate):
    """A truncated image, or a label outside the classes, would give another mIoU in silence."""
    message = evaluate(bad, workers=1)
    assert message.startswith(f'error: image {bad}/img_dir/val/é1.jpg is truncated')
    shutil.copy(good / 'img_dir/val/é1.jpg', bad / 'img_dir/val/é1.jpg')
    cv2.imwrite(str(bad / 'ann_dir/val/é2.png'), np.full((64, 64), 40, np.uint8))
    message = evaluate(bad, workers=0)
    assert message.startswith(f'error: label {bad}/ann_dir/val/é2.png holds 40 (4096 pixels)')


@pytest.mark.parametrize('tta', [(), ('--tta',)])
def test_a_test_that_skips_equals_one_without_the_image(good, bad, evaluate, tmp_path, tta):
    metrics, printed = evaluate(bad, '--data-faults', 'skip', *tta, workers=0)
    assert f'mIoU is over 2 of 3 images; left out: {bad}/img_dir/val/é1.jpg' in printed
    assert metrics['images_left_out'] == 1
    shutil.copytree(good, tmp_path / 'less')
    (tmp_path / 'less/img_dir/val/é1.jpg').unlink()
    expected, printed = evaluate(tmp_path / 'less', *tta, workers=0)
    assert 'left out' not in printed
    for key, value in expected.items():
        if not key.endswith('time'):
            assert metrics[key] == pytest.approx(value), key


def test_names_outside_ascii_reach_label_maps_and_figures(good, evaluate, tmp_path):
    evaluate(good, '--out', tmp_path / 'läbels', '--show-dir', tmp_path / 'figürés', workers=0)
    names = [f'é{index}' for index in range(VAL)]
    assert sorted(path.stem for path in (tmp_path / 'läbels').iterdir()) == names
    figures = [path.name for path in (tmp_path / 'figürés').rglob('*.png')]
    assert all(any(f'{name}.jpg' in figure for figure in figures) for name in names)


def test_a_config_that_skips_by_itself(bad, evaluate):
    """The wrapper and the hook by name, without the option."""
    cfg = Config.fromfile(MINI)
    dataset = dict(cfg.test_dataloader.dataset, data_root=str(bad))
    cfg.test_dataloader.dataset = dict(type='SkipFaultyDataset', test_mode=True, dataset=dataset)
    cfg.custom_hooks = [dict(type='SkippedFilesHook')]
    cfg.dump(config := bad.parent / 'config.py')
    metrics, printed = evaluate(None, config=config, workers=0)
    assert metrics['images_left_out'] == 1
    assert f'mIoU is over 2 of 3 images; left out: {bad}/img_dir/val/é1.jpg' in printed
