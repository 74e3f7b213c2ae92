"""A second image goes along with the first, and a file that cannot be used is named with it."""

from __future__ import annotations

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmseg.registry import TRANSFORMS
from PIL import Image

from mmseg_coop.datasets import LoadSecondImage
from mmseg_coop.errors import DataError, InputError

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
DEPTH = np.random.default_rng(1).integers(0, 9000, (24, 32), dtype=np.uint16)
LOAD = dict(type='LoadSecondImage', folder=('RGB', 'Depth'), dtype='uint16')


@pytest.fixture
def item(tmp_path):
    """An image and its depth, in a root that has the folder's name as well."""
    root = tmp_path / 'RGB'
    for folder in ('RGB', 'Depth'):
        (root / folder / 'train').mkdir(parents=True)
    path = root / 'RGB/train/a.jpg'
    Image.fromarray(COLOURS).save(path, quality=100)
    Image.fromarray(DEPTH).save(root / 'Depth/train/a.png')
    return dict(img_path=str(path), seg_fields=[], depth=root / 'Depth/train/a.png')


def load(item, *steps, **changed):
    return Compose([dict(type='LoadSegImage'), dict(LOAD, **changed), *steps])(dict(item))


def test_its_values_are_those_of_the_file(item):
    image = load(item)['img']
    assert (image.dtype, image.shape) == (np.float32, (24, 32, 4))
    assert np.array_equal(image[..., 3], DEPTH)
    assert np.array_equal(image[..., :3], TRANSFORMS.build(dict(type='LoadSegImage'))(item)['img'])


def test_bytes_beside_bytes_stay_bytes(item):
    Image.fromarray(COLOURS).save(item['depth'])
    image = load(item, dtype='uint8', channels=3)['img']
    assert (image.dtype, image.shape) == (np.uint8, (24, 32, 6))
    assert np.array_equal(image[..., 3:], COLOURS[..., ::-1])


@pytest.mark.parametrize(
    ('step', 'sees'),
    [
        (dict(type='RandomFlip', prob=1.0), lambda x: x[:, ::-1]),
        (dict(type='RandomCrop', crop_size=(8, 8)), None),
        (dict(type='Resize', scale=(16, 12)), None),
        (dict(type='RandomResize', scale=(64, 48), ratio_range=(0.5, 2), keep_ratio=True), None),
        (dict(type='RandomRotate', prob=1.0, degree=30), None),
        (dict(type='Pad', size=(40, 40)), lambda x: np.pad(x, ((0, 16), (0, 8)))),
    ],
    ids=lambda value: value.get('type', '') if isinstance(value, dict) else '',
)
def test_what_moves_the_image_moves_both(item, step, sees):
    """Where the second image is the first one's blue, it stays so."""
    blue = TRANSFORMS.build(dict(type='LoadSegImage'))(item)['img'][..., 0]
    Image.fromarray(blue).save(item['depth'])
    moved = load(item, dict(step), dtype='uint8')['img']
    assert np.ptp(moved) > 100
    assert np.array_equal(moved[..., 3], moved[..., 0])
    if sees is not None:
        assert np.array_equal(moved[..., 3], sees(blue))


def test_colours_are_distorted_alone(item):
    distort = dict(type='PhotoMetricDistortion', contrast_range=(0.2, 0.3))
    steps = [dict(type='LoadSegImage'), distort, LOAD]
    image = Compose(steps)(dict(item))['img']
    assert np.array_equal(image[..., 3], DEPTH)
    assert not np.array_equal(image[..., :3], load(item)['img'][..., :3])


def test_an_array_brings_all_channels_itself():
    step = LoadSecondImage(folder=('RGB', 'Depth'))
    whole = dict(img=np.zeros((4, 4, 4)), img_path=None)
    assert step(whole)['img'] is whole['img']
    with pytest.raises(InputError, match=r'\(4, 4, 3\) names no file.*give a file, or an array'):
        step(dict(img=np.zeros((4, 4, 3)), img_path=None))


def spoil(item, fault):
    file = item['depth']
    if fault == 'missing':
        file.unlink()
    elif fault == 'empty':
        file.write_bytes(b'')
    elif fault == 'truncated':
        file.write_bytes(file.read_bytes()[:-20])
    elif fault == 'size':
        Image.fromarray(DEPTH[:, :30]).save(file)
    elif fault == 'bits':
        Image.fromarray(COLOURS[..., 0]).save(file)
    elif fault == 'colours':
        Image.fromarray(COLOURS).save(file)


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        ('missing', 'cannot be read .*; check folder and suffix of LoadSecondImage'),
        ('empty', 'is empty'),
        ('truncated', 'is truncated'),
        ('size', r'is 24x30, but the image is 24x32 \(height x width\)'),
        ('bits', 'has 1 channels of uint8, not 1 of uint16'),
        ('colours', 'has 3 channels of uint8, not 1 of uint16'),
    ],
)
def test_a_second_image_that_cannot_be_used_is_named_with_the_first(item, fault, message):
    spoil(item, fault)
    with pytest.raises(DataError, match=message) as caught:
        load(item)
    text = str(caught.value)
    assert text.startswith(f'second image of {item["img_path"]}, {item["depth"]} ')
    assert caught.value.path == str(item['depth'])


@pytest.mark.parametrize('changed', [dict(folder=('rgb', 'Depth')), dict(suffix=('.png', '.png'))])
def test_an_image_elsewhere_has_no_second_one(item, changed):
    with pytest.raises(DataError, match='has no second image: it is not named') as caught:
        load(item, **changed)
    assert caught.value.path == item['img_path']


def test_names_are_changed_at_their_end_and_folders_of_several_levels_as_a_whole():
    city = LoadSecondImage(
        folder=('leftImg8bit/train', 'disparity/train'),
        suffix=('_leftImg8bit.png', '_disparity.png'),
    )
    found = city.find('leftImg8bit/leftImg8bit/train/aachen/a_leftImg8bit.png')
    assert found == 'leftImg8bit/disparity/train/aachen/a_disparity.png'


def test_behind_what_resizes_it_is_refused(item):
    steps = [dict(type='LoadSegImage'), dict(type='Resize', scale=(16, 12)), LOAD]
    with pytest.raises(ValueError, match='at another size than its file; put it ahead'):
        Compose(steps)(item)


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (dict(folder='RGB'), r"folder is 'RGB'; give that of the images and"),
        (dict(suffix=('.png',)), r"suffix is \('.png',\)"),
        (dict(dtype='int64'), "dtype is 'int64'; give 'uint8'"),
        (dict(imdecode_backend='gimp'), "imdecode_backend is 'gimp'"),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(dict(LOAD, **changed))
