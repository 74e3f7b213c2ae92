"""Faults of folders, links and lists: found before a run, whatever becomes of single files."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmseg_coop.apis import check_data
from mmseg_coop.errors import DataError

BOTH = pytest.mark.parametrize('data_faults', ['stop', 'skip'])


@pytest.fixture
def root():
    """Two cities with one image each, where any user can get to."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    for name in ('a', 'b'):
        for kind, ending in (('images', '.jpg'), ('labels', '.png')):
            (root / kind / name).mkdir(parents=True)
            cv2.imwrite(str(root / kind / name / f'{name}{ending}'), np.zeros((4, 4), np.uint8))
    yield root
    shutil.rmtree(root)


def check(root, data_faults='stop', **options):
    dataset = dict(
        type='CamVidDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        **options,
    )
    loader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset))
    check_data(Config(dict(train_dataloader=loader)), data_faults=data_faults)


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


def fail(root, data_faults, message, **options):
    with pytest.raises(DataError, match=message) as caught:
        check(root, data_faults, **options)
    assert '\n' not in str(caught.value)


@BOTH
@pytest.mark.parametrize('kind', ['images', 'labels'])
@pytest.mark.parametrize('target', ['..', '.', '../../images', '../../labels'])
def test_a_link_to_a_folder_above(root, data_faults, kind, target):
    link = root / kind / 'a' / 'loop'
    link.symlink_to(target)
    inside = (link.resolve() == root / kind) or target == '.'
    if inside:
        fail(root, data_faults, rf'folder {link} is a link that leads back to a folder above it')
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
    fail(root, data_faults, 'leads back to a folder above it')


@BOTH
def test_links_in_a_circle_over_two_folders(root, data_faults):
    (root / 'images/a/to_b').symlink_to('../b')
    (root / 'images/b/to_a').symlink_to('../a')
    fail(root, data_faults, 'images/a/to_b/to_a is a link that leads back')


@BOTH
@pytest.mark.parametrize('name', ['city', 'c.jpg'])
def test_a_link_to_itself(root, data_faults, name):
    (root / f'images/{name}').symlink_to(name)
    fail(
        root, data_faults, rf'link .*images/{name} cannot be followed to {name} \(OSError: Too many'
    )


@BOTH
def test_a_dead_link_that_may_be_a_folder(root, data_faults):
    (root / 'images/city').symlink_to('/gone/city')
    fail(root, data_faults, r'images/city cannot be followed to /gone/city \(FileNotFoundError')


@pytest.mark.parametrize('link', ['images/a/c.jpg', 'labels/a/c.png'])
def test_a_dead_link_of_a_file(root, link):
    (root / link).symlink_to('gone')
    (root / 'images/a/d.jpg').symlink_to('gone')
    fail(root, 'stop', r'link .*/images/a/.*jpg leads nowhere, to gone')
    check(root, 'skip')  # there it is counted, as other files


@BOTH
def test_good_links_and_those_of_other_files_are_allowed(root, data_faults):
    (root / 'images/c').symlink_to('b')
    (root / 'images/a/c.jpg').symlink_to('a.jpg')
    (root / 'images/README.md').symlink_to('gone')
    (root / 'images/.#lock').symlink_to('gone')
    check(root, data_faults)


@BOTH
@pytest.mark.parametrize('kind', ['images', 'labels'])
def test_a_folder_that_cannot_be_read(root, data_faults, kind):
    with closed(root / kind / 'a'):
        fail(root, data_faults, rf'folder {root}/{kind}/a cannot be read \(PermissionError')


@BOTH
def test_a_data_root_that_is_closed(root, data_faults):
    with closed(root):
        fail(root, data_faults, rf'{root}/images cannot be reached \(PermissionError')


@BOTH
def test_with_a_list_folders_are_not_looked_at(root, data_faults):
    (root / 'images/loop').symlink_to('.')
    (root / 'list.txt').write_text('a/a\n')
    check(root, data_faults, ann_file='list.txt')


@BOTH
def test_a_list_in_another_encoding_is_named(root, data_faults):
    (root / 'list.txt').write_text('Straße', encoding='latin-1')
    fail(root, data_faults, r'list.txt is not UTF-8 text \(.*save it as UTF-8', ann_file='list.txt')


@BOTH
def test_a_name_that_is_no_text(root, data_faults):
    """OpenCV's ``imwrite`` crashes on it, so that a picture of the result would end the run."""
    os.rename(root / 'images/a/a.jpg', os.fsencode(root) + b'/images/a/\xe9.jpg')
    fail(root, data_faults, r'the name of .*/images/a/.udce9.jpg is not utf-8 text; rename it')
