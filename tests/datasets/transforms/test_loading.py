from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS
from PIL import Image
from torch.utils.data import DataLoader

from mmseg_coop.datasets import LoadSegAnnotations, LoadSegImage
from mmseg_coop.errors import DataError

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8))


def encode(picture, format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def write(path, content):
    path.write_bytes(content)
    return str(path)


def write_label(path, label):
    Image.fromarray(label).save(path)
    return str(path)


def item(path, **others):
    return dict(seg_map_path=str(path), reduce_zero_label=False, seg_fields=[], **others)


def thumbnail_segment():
    """An APP1 segment that holds a JPEG of its own, and with it a start, a scan and an end."""
    thumbnail = encode(PICTURE.resize((16, 12)), 'JPEG')
    return b'\xff\xe1' + struct.pack('>H', len(thumbnail) + 2) + thumbnail


# --- Images


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
    path = write(tmp_path / 'image', encode(PICTURE, format, **options))
    expected = LoadImageFromFile(to_float32=to_float32)(dict(img_path=path))
    result = LoadSegImage(to_float32=to_float32)(dict(img_path=path))
    assert result.keys() == expected.keys()
    assert result['img'].dtype == expected['img'].dtype
    np.testing.assert_array_equal(result['img'], expected['img'])
    assert result['img_shape'] == result['ori_shape'] == (48, 64)


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('color_type', ['color', 'grayscale', 'unchanged'])
def test_image_options_are_mmcvs(tmp_path, backend, color_type):
    path = write(tmp_path / 'image.png', encode(PICTURE, 'PNG'))
    options = dict(color_type=color_type, imdecode_backend=backend)
    expected = LoadImageFromFile(**options)(dict(img_path=path))
    np.testing.assert_array_equal(
        LoadSegImage(**options)(dict(img_path=path))['img'], expected['img']
    )


@pytest.mark.parametrize('format', ['JPEG', 'PNG'])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.97])
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_truncated_image_is_named(tmp_path, format, share, backend):
    content = encode(PICTURE, format)
    path = write(tmp_path / 'cut', content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r'image .*cut is truncated: its \d+ bytes end before'):
        LoadSegImage(imdecode_backend=backend)(dict(img_path=path))


def test_bytes_after_the_picture_are_allowed(tmp_path):
    for format in ('JPEG', 'PNG'):
        path = write(tmp_path / format, encode(PICTURE, format) + b'appended' * 20)
        assert LoadSegImage()(dict(img_path=path))['img'].shape == (48, 64, 3)


def test_thumbnails_end_is_not_the_pictures(tmp_path):
    content = encode(PICTURE, 'JPEG')
    content = content[:2] + thumbnail_segment() + content[2:]
    whole = write(tmp_path / 'whole.jpg', content + b'appended')
    assert LoadSegImage()(dict(img_path=whole))['img'].shape == (48, 64, 3)
    cut = write(tmp_path / 'cut.jpg', content[:-200])
    with pytest.raises(ValueError, match=r'cut\.jpg is truncated'):
        LoadSegImage()(dict(img_path=cut))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, r'image .*x\.jpg cannot be read \(FileNotFoundError.*check data_root'),
        (b'', r'image .*x\.jpg is empty \(0 bytes\); restore'),
        (b'not a picture', r'image .*x\.jpg cannot be decoded by cv2'),
        (b'\xff\xd8 rubbish \xff\xd9', r'image .*x\.jpg cannot be decoded by cv2'),
    ],
)
def test_unusable_image_is_named(tmp_path, content, message):
    path = tmp_path / 'x.jpg'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        LoadSegImage()(dict(img_path=str(path)))


def test_decoding_errors_of_pillow_are_named(tmp_path):
    path = write(tmp_path / 'x.jpg', b'not a picture')
    with pytest.raises(ValueError, match=r'x\.jpg cannot be decoded by pillow \(Unidentified'):
        LoadSegImage(imdecode_backend='pillow')(dict(img_path=path))


def turned(picture, format, orientation, **options):
    """Encode an image with a tag by which viewers turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture, format, exif=exif, **options)


@pytest.mark.parametrize('color_type', ['color', 'grayscale', 'unchanged'])
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP'])
def test_image_is_loaded_as_stored_whatever_its_exif_orientation(
    tmp_path, format, backend, color_type
):
    load = LoadSegImage(color_type=color_type, imdecode_backend=backend)
    plain = write(tmp_path / 'plain', encode(PICTURE, format))
    expected = load(dict(img_path=plain))
    for orientation in range(2, 9):
        path = write(tmp_path / 'turned', turned(PICTURE, format, orientation))
        results = load(dict(img_path=path))
        np.testing.assert_array_equal(results['img'], expected['img'])
        assert results['ori_shape'] == (48, 64)


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_label_is_loaded_as_stored_whatever_its_exif_orientation(tmp_path, backend):
    path = write(tmp_path / 'label.png', turned(Image.fromarray(LABEL), 'PNG', 6))
    label = LoadSegAnnotations(imdecode_backend=backend)(item(path))['gt_seg_map']
    np.testing.assert_array_equal(label, LABEL)


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_tiff_files_that_every_decoder_turns_are_refused(tmp_path, backend):
    path = write(tmp_path / 'x.tif', turned(PICTURE, 'TIFF', 3))
    with pytest.raises(DataError, match=r'image .*x\.tif is a TIFF file whose orientation tag'):
        LoadSegImage(imdecode_backend=backend)(dict(img_path=path))
    path = write(tmp_path / 'y.tif', turned(Image.fromarray(LABEL), 'TIFF', 3))
    with pytest.raises(DataError, match=r'label .*y\.tif is a TIFF file'):
        LoadSegAnnotations(imdecode_backend=backend)(item(path))
    path = write(tmp_path / 'z.tif', turned(PICTURE, 'TIFF', 1))
    image = LoadSegImage(imdecode_backend=backend)(dict(img_path=path))['img']
    np.testing.assert_array_equal(image, np.asarray(PICTURE)[..., ::-1])


# --- Labels


LABEL = RNG.choice(np.array([0, 1, 2, 3, 254, 255], np.uint8), (12, 10))


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize(
    'label_map', [None, {0: 1, 1: 0, 2: 255, 3: 2}, {0: 0, 1: 0, 2: 1, 3: 255, 254: 3}]
)
@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
def test_label_equals_mmsegs(tmp_path, reduce_zero_label, label_map, backend):
    path = write_label(tmp_path / 'label.png', LABEL)
    load, plain = (cls(imdecode_backend=backend) for cls in (LoadSegAnnotations, LoadAnnotations))
    results, expected = (
        transform({**item(path, label_map=label_map), 'reduce_zero_label': reduce_zero_label})
        for transform in (load, plain)
    )
    assert results.keys() == expected.keys()
    assert results['seg_fields'] == ['gt_seg_map']
    assert results['gt_seg_map'].dtype == np.uint8
    np.testing.assert_array_equal(results['gt_seg_map'], expected['gt_seg_map'])


def test_palette_and_one_bit_labels_are_read_as_ids(tmp_path):
    palette = Image.fromarray(LABEL)
    palette.putpalette(RNG.integers(0, 256, 768).tolist())
    palette.save(tmp_path / 'palette.png')
    np.testing.assert_array_equal(
        LoadSegAnnotations()(item(tmp_path / 'palette.png'))['gt_seg_map'], LABEL
    )
    Image.fromarray(LABEL > 2).save(tmp_path / 'bits.png')
    label = LoadSegAnnotations(num_classes=2)(item(tmp_path / 'bits.png'))['gt_seg_map']
    np.testing.assert_array_equal(label, (LABEL > 2).astype(np.uint8))


def test_one_column_keeps_its_two_dimensions(tmp_path):
    path = write_label(tmp_path / 'column.png', LABEL[:, :1])
    results = LoadSegAnnotations()(item(path, ori_shape=(12, 1), img_path='i'))
    assert results['gt_seg_map'].shape == (12, 1)


def test_values_within_the_classes_pass(tmp_path):
    path = write_label(tmp_path / 'label.png', np.array([[0, 1, 18, 255]], np.uint8))
    label = LoadSegAnnotations(num_classes=19)(item(path))['gt_seg_map']
    assert label.tolist() == [[0, 1, 18, 255]]


@pytest.mark.parametrize(
    ('values', 'num_classes', 'ignore_index', 'found'),
    [
        ([0, 19, 19, 255], 19, 255, r'19 \(2 pixels\) '),
        ([0, 24, 33, 24], 19, 255, r'24 \(2 pixels\), 33 \(1 pixels\) '),
        ([0, 254, 255, 255], 19, 255, r'254 \(1 pixels\) '),
        ([0, 1, 255, 254], 2, 254, r'255 \(1 pixels\) '),
        ([0, 3, 5, 5], 3, 5, r'3 \(1 pixels\) '),
        (list(range(20)), 4, 255, r'4 .*, 11 \(1 pixels\) and 8 more '),
    ],
)
def test_values_outside_the_classes_are_named(tmp_path, values, num_classes, ignore_index, found):
    path = write_label(tmp_path / 'label.png', np.array([values], np.uint8))
    load = LoadSegAnnotations(num_classes=num_classes, ignore_index=ignore_index)
    allowed = rf'allowed are 0 to {num_classes - 1} and {ignore_index} \(ignored\)'
    with pytest.raises(ValueError, match=rf'label .*label\.png holds {found}.*{allowed}.*reduce_'):
        load(item(path))


@pytest.mark.parametrize('num_classes', [1, 2, 7, 254, 255, 256])
@pytest.mark.parametrize('ignore_index', [0, 5, 254, 255])
def test_value_check_agrees_with_its_definition(tmp_path, num_classes, ignore_index):
    load = LoadSegAnnotations(num_classes=num_classes, ignore_index=ignore_index)
    for value in range(256):
        label = np.array([[0 if num_classes else ignore_index, value]], np.uint8)
        if value < num_classes or value == ignore_index:
            load._check_values(label, 'x')
        else:
            with pytest.raises(ValueError, match=rf'holds {value} \(1 pixels\)'):
                load._check_values(label, 'x')


def test_values_are_checked_after_relabelling(tmp_path):
    path = write_label(tmp_path / 'label.png', np.array([[1, 2, 3]], np.uint8))
    load = LoadSegAnnotations(num_classes=3)
    with pytest.raises(ValueError, match=r'holds 3 \(1 pixels\)'):
        load(item(path))
    results = load({**item(path), 'reduce_zero_label': True})
    assert results['gt_seg_map'].tolist() == [[0, 1, 2]]
    results = load(item(path, label_map={3: 255}))
    assert results['gt_seg_map'].tolist() == [[1, 2, 255]]


def test_values_are_unchecked_without_num_classes(tmp_path):
    path = write_label(tmp_path / 'label.png', LABEL)
    np.testing.assert_array_equal(LoadSegAnnotations()(item(path))['gt_seg_map'], LABEL)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, r'label .*x\.png cannot be read \(FileNotFoundError'),
        (b'', r'label .*x\.png is empty'),
        (b'rubbish', r'label .*x\.png cannot be decoded by pillow'),
        (encode(PICTURE, 'PNG')[:500], r'label .*x\.png is truncated'),
        (encode(PICTURE, 'PNG'), r'x\.png has shape \(48, 64, 3\), not \(H, W\)'),
        (encode(PICTURE.convert('LA'), 'PNG'), r'x\.png has shape \(48, 64, 2\)'),
        (
            encode(Image.fromarray(np.array([[7, 24001]], np.uint16)), 'PNG'),
            r'x\.png holds values from 7 to 24001 .*instance ids',
        ),
        (
            encode(Image.fromarray(np.array([[-1, 3]], np.int32)), 'TIFF'),
            r'x\.png holds values from -1 to 3',
        ),
        (
            encode(Image.fromarray(np.array([[0.5, 3]], np.float32)), 'TIFF'),
            r'x\.png holds float32, not whole numbers',
        ),
    ],
)
def test_unusable_label_is_named(tmp_path, content, message):
    path = tmp_path / 'x.png'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        LoadSegAnnotations(num_classes=256)(item(path))


def test_sixteen_bits_with_small_values_are_read(tmp_path):
    path = tmp_path / 'label.png'
    Image.fromarray(np.array([[7, 255]], np.uint16)).save(path)
    assert LoadSegAnnotations()(item(path))['gt_seg_map'].tolist() == [[7, 255]]


def test_sizes_of_image_and_label_have_to_agree(tmp_path):
    image = write(tmp_path / 'i.png', encode(PICTURE, 'PNG'))
    label = write_label(tmp_path / 'l.png', np.zeros((48, 60), np.uint8))
    results = LoadSegImage()(item(label, img_path=image))
    with pytest.raises(ValueError, match=r'l\.png is 48x60, but image .*i\.png is 48x64'):
        LoadSegAnnotations()(results)


def test_label_that_was_drawn_on_a_turned_image_is_named(tmp_path):
    image = write(tmp_path / 'i.jpg', turned(PICTURE, 'JPEG', 6))
    label = write_label(tmp_path / 'l.png', np.zeros((64, 48), np.uint8))
    with pytest.raises(DataError, match=r'sides are swapped: images are loaded as stored.*exif_tr'):
        LoadSegAnnotations()(LoadSegImage()(item(label, img_path=image)))


def test_label_may_be_loaded_after_the_image_is_resized(tmp_path):
    """As mmseg's test pipelines do."""
    image = write(tmp_path / 'i.png', encode(PICTURE, 'PNG'))
    label = write_label(tmp_path / 'l.png', np.zeros((48, 64), np.uint8))
    results = LoadSegImage()(item(label, img_path=image))
    results = TRANSFORMS.build(dict(type='Resize', scale=(32, 24)))(results)
    results = LoadSegAnnotations()(results)
    assert results['img'].shape == (24, 32, 3)
    assert results['gt_seg_map'].shape == (48, 64)


def test_contradicting_reduce_zero_label(tmp_path):
    path = write_label(tmp_path / 'label.png', LABEL)
    with pytest.warns(UserWarning, match='will be deprecated'):
        load = LoadSegAnnotations(reduce_zero_label=True)
    with pytest.raises(ValueError, match='True in LoadSegAnnotations but False in the dataset'):
        load(item(path))
    assert load({**item(path), 'reduce_zero_label': True})['gt_seg_map'].shape == (12, 10)


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


def test_both_are_registered_and_show_their_settings():
    load = TRANSFORMS.build(dict(type='LoadSegAnnotations', num_classes=3))
    assert 'num_classes=3, ignore_index=255' in repr(load)
    assert repr(TRANSFORMS.build(dict(type='LoadSegImage'))).startswith('LoadSegImage(')


class Items(BaseDataset):
    """Items of which the second has a bad label."""

    def load_data_list(self):
        return [item(path) for path in sorted(Path(self.data_root).iterdir())]


def test_message_survives_a_worker_process(tmp_path):
    write_label(tmp_path / 'a.png', np.zeros((4, 4), np.uint8))
    write_label(tmp_path / 'b.png', np.full((4, 4), 9, np.uint8))
    dataset = Items(
        data_root=str(tmp_path), pipeline=[dict(type='LoadSegAnnotations', num_classes=3)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch's on the number of processors
        loader = DataLoader(dataset, batch_size=None, num_workers=1)
        with pytest.raises(ValueError, match=r'b\.png holds 9 \(16 pixels\)'):
            list(loader)
