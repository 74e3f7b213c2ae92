"""What a user of the tools sees of faulty files, with data loaders that have workers."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
TRAIN, VAL = 4, 3


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """A data set without faults, and with names that are not ASCII."""
    root = tmp_path_factory.mktemp('dätä数据')
    random = np.random.default_rng(0)
    for split, count in dict(train=TRAIN, val=VAL).items():
        for folder in ('img_dir', 'ann_dir'):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            image = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            label = np.repeat(random.integers(0, 11, (8, 8), dtype=np.uint8), 8, 0).repeat(8, 1)
            for folder, picture, ending in (('img_dir', image, 'jpg'), ('ann_dir', label, 'png')):
                cv2.imwrite(str(root / folder / split / f'é{index}.{ending}'), picture)
    return root


@pytest.fixture
def bad(good, tmp_path):
    """A copy in which a training image is empty, and a validation image cut off."""
    root = tmp_path / 'bäd'
    shutil.copytree(good, root)
    (root / 'img_dir/train/é1.jpg').write_bytes(b'')
    cut = root / 'img_dir/val/é1.jpg'
    cut.write_bytes(cut.read_bytes()[:1500])
    return root


def command(tool, root, *arguments, workers, config=CONFIG):
    splits = ('train', 'val', 'test')
    data = [
        *(f'{split}_dataloader.dataset.data_root={root}' for split in splits),
        'test_dataloader.dataset.data_prefix.img_path=img_dir/val',
        'test_dataloader.dataset.data_prefix.seg_map_path=ann_dir/val',
    ]
    options = [
        *(data if root else ()),
        *(f'{split}_dataloader.num_workers={workers}' for split in splits),
        *(f'{split}_dataloader.persistent_workers={workers > 0}' for split in splits),
        'train_dataloader.batch_size=2',
        'train_dataloader.dataset.pipeline.3.crop_size=(32,32)',
        'model.data_preprocessor.size=(32,32)',
        'model.backbone.networks.top.stem_channels=8',
        'model.backbone.networks.top.base_channels=8',
        'model.backbone.networks.bottom.widen_factor=0.25',
        'model.decode_head.networks.top.in_channels=64',
        'model.decode_head.networks.top.low_level_in_channels=8',
        'model.decode_head.networks.bottom.in_channels=80',
        'model.decode_head.networks.bottom.low_level_in_channels=8',
        'train_cfg.max_iters=4',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=4',
    ]
    words = [ROOT / 'tools' / tool, config, *arguments, '--cfg-options', *options]
    return [str(word) for word in words]


def run(*args, folder):
    """Run a tool in its own process, in the plain locale."""
    return subprocess.run(
        [sys.executable, *command(*args, '--work-dir', folder, workers=2)],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'LC_ALL': 'C', 'OMP_NUM_THREADS': '1'},
        encoding='utf-8',
        capture_output=True,
        check=False,
    )


@pytest.fixture(scope='module')
def trained(good, tmp_path_factory):
    """A training that goes on without a faulty file; its folder, its data and what it printed."""
    root = tmp_path_factory.mktemp('skip') / 'bäd'
    shutil.copytree(good, root)
    (root / 'img_dir/train/é1.jpg').write_bytes(b'')
    (root / 'ann_dir/val/é1.png').write_bytes(b'')
    folder = tmp_path_factory.mktemp('train')
    done = run('train.py', root, '--data-faults', 'skip', folder=folder)
    assert done.returncode == 0, done.stderr
    return folder, root, done.stdout


@pytest.fixture
def test_tool(tmp_path, trained, monkeypatch, capfd):
    """Run tools/test.py in this process; returns its metrics, or the message it ends with."""

    def test(root, *arguments, workers=0, **options):
        folder = tmp_path / f'test{len(list(tmp_path.iterdir()))}'
        words = command(
            'test.py', root, trained[0] / 'iter_4.pth', *arguments, '--work-dir', folder,
            workers=workers, **options,
        )  # fmt: skip
        monkeypatch.setattr(sys, 'argv', words)
        try:
            runpy.run_path(words[0], run_name='__main__')
        except SystemExit as end:
            return end.code
        return json.loads(next(folder.glob('*/*.json')).read_text()), capfd.readouterr().out

    return test


def test_skipping_in_training_and_validation(trained):
    _, root, printed = trained
    assert printed.count(f'Skipped from now on: image {root}/img_dir/train/é1.jpg is empty') == 1
    assert re.search(r'Faulty files skipped up to iteration \d: 1, in \d', printed)
    assert '1 of 3 images are left out:' in printed
    for iteration in (2, 4):
        assert f'mIoU after iteration {iteration} is over 2 of 3 images; left out: ' in printed


def test_stopping_ends_with_the_file(bad, tmp_path):
    done = run('train.py', bad, folder=tmp_path)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith((
        f'error: image {bad}/img_dir/train/é1.jpg is empty (0 bytes)',
        f'error: image {bad}/img_dir/val/é1.jpg is truncated: its 1500 bytes end before',
    ))  # fmt: skip


def test_too_many_faults_end_a_run_that_skips(bad, tmp_path):
    for path in (bad / 'ann_dir/train').iterdir():
        cv2.imwrite(str(path), np.full((64, 64), 77, np.uint8))
    done = run('train.py', bad, '--no-validate', '--data-faults', 'skip', folder=tmp_path)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith('error: 10 samples in a row cannot be used')
    assert 'holds 77 (4096 pixels)' in last
    assert 'No file was skipped in training.' in done.stdout  # said although the run has failed


def test_a_test_notices_what_its_stock_pipeline_would_not(good, bad, test_tool):
    """A truncated image, or a label outside the classes, would give another mIoU in silence."""
    message = test_tool(bad, workers=1)
    assert message.startswith(f'error: image {bad}/img_dir/val/é1.jpg is truncated')
    shutil.copy(good / 'img_dir/val/é1.jpg', bad / 'img_dir/val/é1.jpg')
    cv2.imwrite(str(bad / 'ann_dir/val/é2.png'), np.full((64, 64), 40, np.uint8))
    message = test_tool(bad)
    assert message.startswith(f'error: label {bad}/ann_dir/val/é2.png holds 40 (4096 pixels)')


@pytest.mark.parametrize('tta', [(), ('--tta',)])
def test_a_test_that_skips_equals_one_without_the_image(good, bad, test_tool, tmp_path, tta):
    metrics, printed = test_tool(bad, '--data-faults', 'skip', *tta)
    assert f'mIoU is over 2 of 3 images; left out: {bad}/img_dir/val/é1.jpg' in printed
    assert metrics['images_left_out'] == 1
    shutil.copytree(good, tmp_path / 'less')
    (tmp_path / 'less/img_dir/val/é1.jpg').unlink()
    expected, printed = test_tool(tmp_path / 'less', *tta)
    assert 'left out' not in printed
    for key, value in expected.items():
        if not key.endswith('time'):
            assert metrics[key] == pytest.approx(value), key


def test_names_outside_ascii_reach_label_maps_and_pictures(good, test_tool, tmp_path):
    test_tool(good, '--out', tmp_path / 'läbels', '--show-dir', tmp_path / 'pictürés')
    names = [f'é{index}' for index in range(VAL)]
    assert sorted(path.stem for path in (tmp_path / 'läbels').iterdir()) == names
    pictures = [path.name for path in (tmp_path / 'pictürés').rglob('*.png')]
    assert all(any(f'{name}.jpg' in picture for picture in pictures) for name in names)


def test_a_config_that_skips_by_itself(bad, test_tool):
    """The wrapper and the hook by name, without the option."""
    config = bad.parent / 'config.py'
    config.write_text(
        f"""
_base_ = {str(CONFIG)!r}
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='SkipFaultyDataset',
        test_mode=True,
        dataset=dict(
            type='CamVidDataset',
            data_root={str(bad)!r},
            data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
            pipeline={{{{_base_.test_pipeline}}}},
        ),
    )
)
custom_hooks = [dict(type='SkippedFilesHook')]
""",
        encoding='utf-8',
    )
    metrics, printed = test_tool(None, config=config)
    assert metrics['images_left_out'] == 1
    assert f'mIoU is over 2 of 3 images; left out: {bad}/img_dir/val/é1.jpg' in printed
