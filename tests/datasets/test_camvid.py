from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from mmseg.registry import DATASETS
from PIL import Image

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


@pytest.fixture
def root(tmp_path):
    """Two frames in train, one in val."""
    for split, names in (('train', ['b', 'a']), ('val', ['c'])):
        for folder in ('img_dir', 'ann_dir'):
            (tmp_path / folder / split).mkdir(parents=True)
        for name in names:
            image = Image.fromarray(np.full((4, 6, 3), 100, np.uint8))
            image.save(tmp_path / 'img_dir' / split / f'{name}.jpg')
            label = Image.fromarray(np.full((4, 6), ord(name) - ord('a'), np.uint8))
            label.save(tmp_path / 'ann_dir' / split / f'{name}.png')
    return tmp_path


def build(root, split='train', **kwargs):
    prefix = dict(img_path=f'img_dir/{split}', seg_map_path=f'ann_dir/{split}')
    return DATASETS.build(
        dict(type='CamVidDataset', data_root=str(root), data_prefix=prefix, **kwargs)
    )


def test_reads_the_folders_of_a_split(root):
    dataset = build(root, pipeline=PIPELINE)
    assert [Path(item['img_path']).name for item in dataset] == ['a.jpg', 'b.jpg']
    assert [np.unique(item['gt_seg_map']).tolist() for item in dataset] == [[0], [1]]
    assert len(build(root, 'val')) == 1


def test_eleven_classes_in_segnets_palette(root):
    names = 'sky building pole road sidewalk tree sign fence car pedestrian bicyclist'
    dataset = build(root)
    assert dataset.metainfo['classes'] == tuple(names.split())
    colours = dict(zip(dataset.metainfo['classes'], dataset.metainfo['palette'], strict=True))
    assert colours['sky'] == [128, 128, 128]
    assert colours['road'] == [128, 64, 128]
    assert colours['bicyclist'] == [0, 128, 192]
    assert len({tuple(colour) for colour in colours.values()}) == 11
    assert dataset.ignore_index == 255
    assert not dataset.reduce_zero_label


def test_other_suffixes(root):
    for path in (root / 'img_dir' / 'train').iterdir():
        path.rename(path.with_suffix('.jpeg'))
    for path in (root / 'ann_dir' / 'train').iterdir():
        path.rename(path.with_name(f'{path.stem}_L.png'))
    dataset = build(root, img_suffix='.jpeg', seg_map_suffix='_L.png', pipeline=PIPELINE)
    assert [Path(item['seg_map_path']).name for item in dataset] == ['a_L.png', 'b_L.png']


def test_finding_no_image_says_where_and_what_to_do(root):
    with pytest.raises(ValueError, match=r"no \*\.bmp image in .*img_dir/train.*'\.png'"):
        build(root, img_suffix='.bmp')


@pytest.mark.skipif('CAMVID_ROOT' not in os.environ, reason='CAMVID_ROOT is not set')
def test_the_real_frames_hold_no_other_labels():
    dataset = build(
        os.environ['CAMVID_ROOT'],
        'val',
        pipeline=[
            dict(type='LoadSegImage'),
            dict(type='LoadSegAnnotations', num_classes=11),
        ],
    )
    assert len(dataset) == 101
    labels = {int(value) for item in dataset for value in np.unique(item['gt_seg_map'])}
    assert labels <= {*range(11), 255}
    assert len(labels) > 8
