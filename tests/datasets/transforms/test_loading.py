"""What the checking transforms load; what they refuse is in ../faults/test_faults.py."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from mmseg_coop.datasets import LoadSegAnnotations, LoadSegImage
from mmseg_coop.errors import DataError

RNG = np.random.default_rng(0)
IMAGE = Image.fromarray(RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8))
LABEL = RNG.choice(np.array([0, 1, 2, 3, 254, 255], np.uint8), (12, 10))
BACKENDS = pytest.mark.parametrize('backend', ['cv2', 'pillow'])


def encode(image, format, *, orientation=None, **options):
    """Encode an image or an array, with a tag by which viewers turn it if asked for."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if orientation:
        options['exif'] = Image.Exif()
        options['exif'][0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def write(path, content):
    path.write_bytes(content)
    return dict(img_path=str(path))


def label_item(path, label=LABEL, format='PNG', *, orientation=None, **others):
    path.write_bytes(encode(label, format, orientation=orientation))
    return {'seg_map_path': str(path), 'reduce_zero_label': False, 'seg_fields': [], **others}


@pytest.mark.parametrize(
    ('format', 'options'),
    [
        ('JPEG', {}),
        ('JPEG', dict(progressive=True)),
        ('PNG', {}),
        ('BMP', {}),
        ('TIFF', {}),
        ('WEBP', {}),
    ],
)
@pytest.mark.parametrize('to_float32', [False, True])
def test_image_equals_mmcvs(tmp_path, format, options, to_float32):
    item = write(tmp_path / 'image', encode(IMAGE, format, **options))
    expected = LoadImageFromFile(to_float32=to_float32)(dict(item))
    result = LoadSegImage(to_float32=to_float32)(dict(item))
    assert result.keys() == expected.keys()
    assert result['img'].dtype == expected['img'].dtype
    np.testing.assert_array_equal(result['img'], expected['img'])
    assert result['img_shape'] == result['ori_shape'] == (48, 64)


@BACKENDS
@pytest.mark.parametrize('color_type', ['color', 'grayscale', 'unchanged'])
@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP'])
def test_image_is_loaded_as_stored_whatever_its_exif_orientation(
    tmp_path, format, backend, color_type
):
    options = dict(color_type=color_type, imdecode_backend=backend)
    item = write(tmp_path / 'plain', encode(IMAGE, format))
    expected = LoadImageFromFile(**options)(dict(item))['img']
    for orientation in range(1, 9):
        item = write(tmp_path / 'turned', encode(IMAGE, format, orientation=orientation))
        results = LoadSegImage(**options)(item)
        np.testing.assert_array_equal(results['img'], expected)
        assert results['ori_shape'] == (48, 64)


@BACKENDS
def test_label_is_loaded_as_stored_whatever_its_exif_orientation(tmp_path, backend):
    item = label_item(tmp_path / 'label.png', orientation=6)
    label = LoadSegAnnotations(imdecode_backend=backend)(item)['gt_seg_map']
    np.testing.assert_array_equal(label, LABEL)


@BACKENDS
def test_tiff_files_that_every_decoder_turns_are_refused(tmp_path, backend):
    item = write(tmp_path / 'x.tif', encode(IMAGE, 'TIFF', orientation=3))
    with pytest.raises(DataError, match=r'image .*x\.tif is a TIFF file whose orientation tag'):
        LoadSegImage(imdecode_backend=backend)(item)
    item = label_item(tmp_path / 'y.tif', format='TIFF', orientation=3)
    with pytest.raises(DataError, match=r'label .*y\.tif is a TIFF file'):
        LoadSegAnnotations(imdecode_backend=backend)(item)
    item = write(tmp_path / 'z.tif', encode(IMAGE, 'TIFF', orientation=1))
    image = LoadSegImage(imdecode_backend=backend)(item)['img']
    np.testing.assert_array_equal(image, np.asarray(IMAGE)[..., ::-1])


def test_where_an_image_ends(tmp_path):
    """Bytes may follow it, and the end of a thumbnail is not its own."""
    thumbnail = encode(IMAGE.resize((16, 12)), 'JPEG')
    segment = b'\xff\xe1' + struct.pack('>H', len(thumbnail) + 2) + thumbnail
    jpeg = encode(IMAGE, 'JPEG')
    jpeg = jpeg[:2] + segment + jpeg[2:]
    for content in (jpeg, encode(IMAGE, 'PNG')):
        item = write(tmp_path / 'whole', content + b'appended' * 20)
        assert LoadSegImage()(item)['img'].shape == (48, 64, 3)
    with pytest.raises(DataError, match=r'cut\.jpg is truncated'):
        LoadSegImage()(write(tmp_path / 'cut.jpg', jpeg[:-200]))


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize(
    'label_map', [None, {0: 1, 1: 0, 2: 255, 3: 2}, {0: 0, 1: 0, 2: 1, 3: 255, 254: 3}]
)
@BACKENDS
def test_label_equals_mmsegs(tmp_path, reduce_zero_label, label_map, backend):
    load, plain = (cls(imdecode_backend=backend) for cls in (LoadSegAnnotations, LoadAnnotations))
    results, expected = (
        transform(
            label_item(
                tmp_path / 'label.png', label_map=label_map, reduce_zero_label=reduce_zero_label
            )
        )
        for transform in (load, plain)
    )
    assert results.keys() == expected.keys()
    assert results['seg_fields'] == ['gt_seg_map']
    assert results['gt_seg_map'].dtype == np.uint8
    np.testing.assert_array_equal(results['gt_seg_map'], expected['gt_seg_map'])


def test_one_column_keeps_its_two_dimensions(tmp_path):
    item = label_item(tmp_path / 'label.png', LABEL[:, :1], ori_shape=(12, 1), img_path='i')
    assert LoadSegAnnotations()(item)['gt_seg_map'].shape == (12, 1)


@pytest.mark.parametrize(
    ('values', 'num_classes', 'ignore_index', 'found'),
    [
        ([0, 24, 33, 24, 255], 19, 255, r'24 \(2 pixels\), 33 \(1 pixels\) '),
        ([0, 1, 255, 254], 2, 254, r'255 \(1 pixels\) '),
        ([0, 3, 5, 5], 3, 5, r'3 \(1 pixels\) '),
        (list(range(20)), 4, 255, r'4 .*, 11 \(1 pixels\) and 8 more '),
    ],
)
def test_values_outside_the_classes_are_named(tmp_path, values, num_classes, ignore_index, found):
    load = LoadSegAnnotations(num_classes=num_classes, ignore_index=ignore_index)
    allowed = rf'allowed are 0 to {num_classes - 1} and {ignore_index} \(ignored\)'
    with pytest.raises(DataError, match=rf'label .*label\.png holds {found}.*{allowed}.*reduce_'):
        load(label_item(tmp_path / 'label.png', np.array([values], np.uint8)))


@pytest.mark.parametrize('num_classes', [1, 2, 7, 254, 255, 256])
@pytest.mark.parametrize('ignore_index', [0, 5, 254, 255])
def test_value_check_agrees_with_its_definition(num_classes, ignore_index):
    load = LoadSegAnnotations(num_classes=num_classes, ignore_index=ignore_index)
    for value in range(256):
        label = np.array([[0, value]], np.uint8)
        if value < num_classes or value == ignore_index:
            load._check_values(label)
        else:
            with pytest.raises(Exception, match=rf'holds {value} \(1 pixels\)'):
                load._check_values(label)


def test_values_are_checked_after_relabelling(tmp_path):
    def load(**others):
        item = label_item(tmp_path / 'label.png', np.array([[1, 2, 3]], np.uint8), **others)
        return LoadSegAnnotations(num_classes=3)(item)['gt_seg_map'].tolist()

    with pytest.raises(DataError, match=r'holds 3 \(1 pixels\)'):
        load()
    assert load(reduce_zero_label=True) == [[0, 1, 2]]
    assert load(label_map={3: 255}) == [[1, 2, 255]]


@pytest.mark.parametrize(
    ('load', 'arguments', 'message'),
    [
        (LoadSegAnnotations, dict(num_classes=0), 'num_classes is 0; give 1 to 256'),
        (LoadSegAnnotations, dict(num_classes=257), 'num_classes is 257'),
        (LoadSegAnnotations, dict(ignore_index=-100), 'ignore_index is -100; give 0 to 255'),
        (LoadSegAnnotations, dict(imdecode_backend='cv3'), "imdecode_backend is 'cv3'; give one"),
        (LoadSegImage, dict(imdecode_backend='cv3'), "imdecode_backend is 'cv3'; give one"),
        (LoadSegImage, dict(color_type='colour'), "color_type is 'colour'; give one of"),
    ],
)
def test_arguments_out_of_range(load, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**arguments)


def test_settings_are_shown():
    assert 'num_classes=3, ignore_index=255' in repr(LoadSegAnnotations(num_classes=3))
