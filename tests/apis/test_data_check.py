"""What is wrong with a config's data as a whole is found before a run."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmseg_coop.apis import check_data
from mmseg_coop.errors import ConfigError, DataError

BOTH = pytest.mark.parametrize('data_faults', ['stop', 'skip'])


@pytest.fixture
def root():
    """Two cities with one image of 4x8 each, where any user can get to."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    for name in ('a', 'b'):
        for kind, ending in (('images', '.jpg'), ('labels', '.png')):
            (root / kind / name).mkdir(parents=True)
            cv2.imwrite(str(root / kind / name / f'{name}{ending}'), np.zeros((4, 8), np.uint8))
    yield root
    shutil.rmtree(root)


def check(root, data_faults='stop', split='train', **options):
    """Check a dataset inside of two wrappers; returns the checked config."""
    dataset = dict(
        type='CamVidDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
    )
    dataset.update(options)
    wrapped = dict(type='ConcatDataset', datasets=[dict(dataset), dict(dataset)])
    wrapped = dict(type='RepeatDataset', times=2, dataset=wrapped)
    cfg = Config({f'{split}_dataloader': dict(dataset=wrapped)})
    check_data(cfg, data_faults=data_faults)
    return cfg[f'{split}_dataloader'].dataset


def fail(root, message, *args, error=DataError, **options):
    with pytest.raises(error, match=message) as caught:
        check(root, *args, **options)
    assert '\n' not in str(caught.value)


@contextmanager
def closed(folder):
    """Close a folder to the user of the test, who becomes another if nothing is closed to root."""
    folder.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield
    folder.chmod(0o755)


# --- What the config names


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(type='CityscapesDataset'), DataError, 'val split is empty: Citys.*_leftImg8bit'),
        (
            dict(data_prefix=dict(img_path='images', seg_map_path='label')),
            FileNotFoundError,
            r"seg_map_path '.*/label' of the val split does not exist",
        ),
        (dict(ann_file='val.txt'), FileNotFoundError, r"ann_file '.*val.txt' of the val split"),
        (dict(data_root='/nowhere'), FileNotFoundError, r'--cfg-options val_data.*data_root=DIR'),
    ],
)
def test_what_is_not_there_is_named(root, options, error, message):
    fail(root, message, split='val', error=error, **options)


def test_after_the_check_every_file_is_checked_and_faulty_ones_are_skipped_if_asked(root):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    dataset = check(root, pipeline=pipeline).dataset
    assert [[step.type for step in part.pipeline] for part in dataset.datasets] == [
        ['LoadSegImage', 'LoadSegAnnotations']
    ] * 2
    for split in ('train', 'test'):
        dataset = check(root, 'skip', split)
        assert (dataset.type, dataset.test_mode) == ('SkipFaultyDataset', split == 'test')
        assert dataset.dataset.type == 'RepeatDataset'


# --- Folders, links and lists, whatever becomes of single files


@BOTH
@pytest.mark.parametrize('kind', ['images', 'labels'])
@pytest.mark.parametrize('target', ['..', '.', '../../images', '../../labels'])
def test_a_symlink_loop(root, data_faults, kind, target):
    link = root / kind / 'a' / 'loop'
    link.symlink_to(target)
    if link.resolve() == root / kind or target == '.':
        fail(root, rf'folder {link} is a symlink loop: it leads back to a folder', data_faults)
    else:  # another branch, which leads to no folder twice
        check(root, data_faults)


@BOTH
def test_links_that_would_list_without_end(root, data_faults, monkeypatch):
    """Two of them double the number of folders with each of 40 levels."""
    listed, scandir = [], os.scandir

    def counted(folder):
        listed.append(folder)
        assert len(listed) < 100
        return scandir(folder)

    monkeypatch.setattr(os, 'scandir', counted)
    for name in ('one', 'two'):
        (root / f'images/a/{name}').symlink_to('.')
    fail(root, 'leads back to a folder above it', data_faults)


@BOTH
@pytest.mark.parametrize(
    ('links', 'message'),
    [
        ({'a/to_b': '../b', 'b/to_a': '../a'}, 'images/a/to_b/to_a is a symlink loop'),
        ({'city': 'city'}, r'link .*/city cannot be followed to city \(OSError: Too many'),
        ({'c.jpg': 'c.jpg'}, r'link .*/c.jpg cannot be followed to c.jpg \(OSError: Too many'),
        ({'city': '/gone'}, r'images/city cannot be followed to /gone \(FileNotFoundError'),
        ({'c': 'b', 'a/c.jpg': 'a.jpg', 'README.md': 'gone', '.#lock': 'gone'}, ''),  # are allowed
    ],
)
def test_links(root, data_faults, links, message):
    for link, target in links.items():
        (root / 'images' / link).symlink_to(target)
    if message:
        fail(root, message, data_faults)
    else:
        check(root, data_faults)


@pytest.mark.parametrize('link', ['images/a/c.jpg', 'labels/a/c.png'])
def test_a_dead_link_of_a_file(root, link):
    (root / link).symlink_to('gone')
    fail(root, rf'links lead nowhere \(fix or remove them\): {root}/{link} to gone$')
    (root / 'labels/b/d.png').symlink_to('gone')
    fail(root, rf'{root}/{link} to gone and 1 more$')
    check(root, 'skip')  # there it is counted, as other files


@BOTH
@pytest.mark.parametrize(
    ('folder', 'message'),
    [
        ('images/a', 'folder ROOT/images/a cannot be read .PermissionError'),
        ('labels/a', 'folder ROOT/labels/a cannot be read .PermissionError'),
        ('', 'ROOT/images cannot be reached .PermissionError'),
    ],
)
def test_a_folder_that_is_closed(root, data_faults, folder, message):
    with closed(root / folder):
        fail(root, message.replace('ROOT', re.escape(str(root))), data_faults)


@BOTH
def test_with_a_list_folders_are_not_looked_at(root, data_faults):
    (root / 'images/loop').symlink_to('.')
    (root / 'list.txt').write_text('a/a\n')
    check(root, data_faults, ann_file='list.txt')
    (root / 'list.txt').write_text('Straße', encoding='latin-1')
    message = r'list.txt is not UTF-8 text \(.*save it as UTF-8'
    fail(root, message, data_faults, ann_file='list.txt')


@BOTH
def test_a_name_that_is_no_text(root, data_faults):
    """OpenCV's ``imwrite`` crashes on it, so that an image of the result would end the run."""
    os.rename(root / 'images/a/a.jpg', os.fsencode(root) + b'/images/a/\xe9.jpg')
    message = r'the name of .*/images/a/.udce9.jpg is not utf-8 text; rename it'
    fail(root, message, data_faults)


# --- Labels that the pipeline of an evaluation resizes


LOAD, OUR_LOAD = dict(type='LoadImageFromFile'), dict(type='LoadSegImage')
LABELS, OUR_LABELS = dict(type='LoadAnnotations'), dict(type='LoadSegAnnotations', num_classes=11)
RESIZE = dict(type='Resize', scale=(4, 2))
CROP = dict(type='CenterCrop', crop_size=(2, 2))
EVAL_CROP = dict(type='EvalCenterCrop', crop_size=(2, 2))
FLIP = dict(type='RandomFlip', prob=0.5)
PACK = dict(type='PackSegInputs')


@pytest.mark.parametrize(
    ('pipeline', 'index', 'name'),
    [
        ([LOAD, LABELS, RESIZE, PACK], 2, 'Resize'),
        ([OUR_LOAD, OUR_LABELS, RESIZE, PACK], 2, 'Resize'),
        ([LABELS, LOAD, FLIP, RESIZE, PACK], 3, 'Resize'),
        ([LOAD, LABELS, CROP, PACK], 2, 'CenterCrop'),
        ([LOAD, RESIZE, LABELS, dict(type='Pad', size=(8, 8)), PACK], 3, 'Pad'),
    ],
)
def test_labels_resized_in_an_evaluation_are_named_at_the_start(root, pipeline, index, name):
    message = (
        rf'val_dataloader.dataset.*\.pipeline.{index} \({name}\) turns the label of '
        r'.*a.jpg into \dx\d, but predictions are evaluated at 4x8 .*load labels behind'
    )
    fail(root, message, split='val', pipeline=pipeline, error=ConfigError)


@pytest.mark.parametrize(
    'pipeline',
    [
        [LOAD, RESIZE, LABELS, PACK],
        [OUR_LOAD, RESIZE, OUR_LABELS, PACK],
        [OUR_LOAD, OUR_LABELS, EVAL_CROP, PACK],
        [LOAD, LABELS, RESIZE, EVAL_CROP, PACK],
        [LOAD, RESIZE, PACK],
        [LOAD, dict(type='TestTimeAug', transforms=[[RESIZE], [LABELS], [PACK]])],
    ],
)
def test_evaluations_whose_labels_keep_their_size_pass(root, pipeline):
    check(root, split='val', pipeline=pipeline)


def test_files_that_cannot_be_used_are_left_to_the_run(root):
    (root / 'labels/a/a.png').write_bytes(b'')
    check(root, split='val', pipeline=[LOAD, LABELS, RESIZE, PACK])


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_transform_that_fails_is_named_by_its_path(root, split):
    message = rf'^{split}_dataloader.*\.pipeline\.1 \(LoadSegAnnotations\): .*seg_map_path'
    options = dict(pipeline=[LOAD, LABELS, PACK], data_prefix=dict(img_path='images'))
    fail(root, message, split=split, error=ConfigError, **options)


def test_a_pipeline_that_packs_nothing_is_refused(root):
    dataset = check(root, pipeline=[LOAD, LABELS]).dataset.datasets[0]  # a wrapper may pack
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    with pytest.raises(
        ConfigError, match=r'^train_dataloader.dataset.pipeline packs no image; end'
    ):
        check_data(cfg)


def test_a_transform_that_cannot_be_built_is_named_by_its_path(root):
    pipeline = [LOAD, dict(type='Resize', scal=(4, 2)), LABELS, PACK]
    message = r'val_dataloader\..*dataset.*pipeline\.1.*Resize'
    fail(root, message, split='val', pipeline=pipeline, error=ConfigError)
