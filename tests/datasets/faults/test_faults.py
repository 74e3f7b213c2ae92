"""Every fault of a file, under both policies: stop with its name, or leave it out and count it."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset
from PIL import Image

from mmseg_coop.datasets import SkipFaultyDataset
from mmseg_coop.datasets.faults import check_loading
from mmseg_coop.datasets.faults.skip_faulty_dataset import SKIPPED_KEY
from mmseg_coop.datasets.faults.walk import iter_datasets
from mmseg_coop.errors import ConfigError, DataError
from tests.datasets.transforms.test_loading import encode

COUNT, SIZE = 6, (4, 12)  # images, height and width
CLASSES = tuple(f'class {index}' for index in range(12))
IDS = np.tile(np.arange(12, dtype=np.uint8), (4, 1))
RNG = np.random.default_rng(0)
STOCK = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


def grey_png(label, bits):
    """A PNG file of grey levels with few bits, which Pillow does not write."""

    def chunk(name, data):
        checksum = struct.pack('>I', zlib.crc32(name + data))
        return struct.pack('>I', len(data)) + name + data + checksum

    height, width = label.shape
    levels = np.unpackbits(label[..., None], axis=-1)[..., -bits:].reshape(height, -1)
    rows = np.pad(np.packbits(levels, axis=1), ((0, 0), (1, 0)))  # each begins with its filter
    header = struct.pack('>IIBBBBB', width, height, bits, 0, 0, 0, 0)
    chunks = (b'IHDR', header), (b'IDAT', zlib.compress(rows.tobytes())), (b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in chunks)


def palette(label, colours=None):
    image = Image.fromarray(label)
    image.putpalette(RNG.integers(0, 256, 768).tolist() if colours is None else colours)
    return image


def damaged(content):
    """With a few bytes in the middle of the image's data zeroed."""
    start = content.index(b'IDAT') + 8
    return content[:start] + bytes(8) + content[start + 8 :]


GREY_RAMP = [level * 10 % 256 for level in range(256) for _ in range(3)]
PHOTO = Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
JPEG = encode(PHOTO, 'JPEG')
PNG = encode(IDS, 'PNG')
NO_FILE, FOLDER, PIPE, DEAD, CIRCLE = 'no file', 'folder', 'pipe', 'dead link', 'link to itself'

#: What is put in the place of a file, and what the message says. A label's may depend on what
#: decodes it.
IMAGE_FAULTS = {
    'vanished': (NO_FILE, 'cannot be read .FileNotFoundError'),
    'a folder': (FOLDER, 'is not a file'),
    'a pipe': (PIPE, 'is not a file'),
    'dead link': (DEAD, 'cannot be read .FileNotFoundError'),
    'link to itself': (CIRCLE, r'cannot be read .OSError.*symbolic links'),
    'empty': (b'', r'is empty \(0 bytes\)'),
    'truncated JPEG': (JPEG[: len(JPEG) * 2 // 3], r'is truncated: its \d+ bytes end before'),
    'a tenth of a JPEG': (JPEG[: len(JPEG) // 10], 'is truncated'),
    'a third of a PNG': (PNG[: len(PNG) // 3], 'is truncated'),
    'truncated PNG': (encode(PHOTO, 'PNG')[:-30], 'is truncated'),
    'truncated BMP': (encode(PHOTO, 'BMP')[:-30], 'cannot be decoded'),
    'truncated TIFF': (encode(PHOTO, 'TIFF')[:-30], 'cannot be decoded'),
    'damaged PNG': (damaged(encode(PHOTO, 'PNG')), 'is damaged: the checksum'),
    'no image': (b'<html>404</html>', 'cannot be decoded'),
    'no JPEG': (b'\xff\xd8 rubbish \xff\xd9', 'cannot be decoded'),
}
LABEL_FAULTS = {
    **{name: IMAGE_FAULTS[name] for name in ('vanished', 'a folder', 'a pipe', 'dead link')},
    'link to itself': IMAGE_FAULTS['link to itself'],
    'empty': IMAGE_FAULTS['empty'],
    'no image': IMAGE_FAULTS['no image'],
    'truncated': (PNG[:-20], 'is truncated'),
    'damaged': (damaged(PNG), 'is damaged: the checksum'),
    'RGB': (encode(Image.fromarray(IDS).convert('RGB'), 'PNG'), r'shape \(4, 12, 3\)'),
    'RGBA': (encode(Image.fromarray(IDS).convert('RGBA'), 'PNG'), r'shape \(4, 12, 4\)'),
    'LA': (encode(Image.fromarray(IDS).convert('LA'), 'PNG'), r'shape \(4, 12, [24]\)'),
    '16 bits above 255': (encode(IDS.astype(np.uint16) + 250, 'PNG'), 'from 250 to 261'),
    '16 bits that wrap': (encode(IDS.astype(np.uint16) + 256, 'PNG'), 'from 256 to 267'),
    '32 bits below 0': (encode(IDS.astype(np.int32) - 1, 'TIFF'), 'from -1 to 10'),
    'floats': (encode(IDS.astype(np.float32), 'TIFF'), 'float32, not whole numbers'),
    '2 bits': (grey_png(IDS % 4, 2), 'fewer than 256 levels'),
    '4 bits': (grey_png(IDS, 4), 'fewer than 256 levels'),
    'PGM of 11 levels': (b'P5 12 4 11\n' + IDS.tobytes(), 'fewer than 256 levels'),
    'JPEG': (encode(IDS, 'JPEG'), 'JPEG file, whose compression changes ids'),
    'another size': (encode(IDS[:, :10], 'PNG'), r'is 4x10, but image .* is 4x12'),
    'turned': (encode(IDS.T.copy(), 'PNG'), 'is 12x4, but image .*The sides are swapped'),
    'outside the classes': (encode(IDS + 1, 'PNG'), r'holds 12 \(4 pixels\).*allowed are 0 to 11'),
    'almost ignored': (encode(np.full_like(IDS, 254), 'PNG'), r'holds 254 \(48 pixels\)'),
}
#: What Pillow reads as ids and OpenCV as colours.
COLOURED = {
    'palette PNG': encode(palette(IDS), 'PNG'),
    'palette PNG of 4 bits': encode(palette(IDS), 'PNG', bits=4),
    'palette PNG of greys': encode(palette(IDS, GREY_RAMP), 'PNG'),
    'palette PNG with a transparent colour': encode(palette(IDS), 'PNG', transparency=0),
    'palette BMP': encode(palette(IDS), 'BMP'),
    'palette BMP of greys': encode(palette(IDS, GREY_RAMP), 'BMP'),
    'palette TIFF': encode(palette(IDS), 'TIFF'),
    'palette GIF': encode(palette(IDS), 'GIF'),
    '1-bit PNG': encode(IDS % 2 > 0, 'PNG'),
    '1-bit BMP': encode(IDS % 2 > 0, 'BMP'),
    '1-bit TIFF': encode(IDS % 2 > 0, 'TIFF'),
}
#: What both read as ids.
PLAIN = {
    'PNG': PNG,
    'PNG with a transparent grey': encode(IDS, 'PNG', transparency=0),
    '16-bit PNG': encode(IDS.astype(np.uint16), 'PNG'),
    '16-bit TIFF': encode(IDS.astype(np.uint16), 'TIFF'),
    '32-bit TIFF': encode(IDS.astype(np.int32), 'TIFF'),
    'TIFF from the other end': encode(IDS, 'TIFF', tiffinfo={262: 0}),
    'BMP': encode(IDS, 'BMP'),
    'PGM': encode(IDS, 'PPM'),
    'JPEG 2000': encode(IDS, 'JPEG2000'),
}


@pytest.fixture
def root(tmp_path):
    """Six images, each of one colour that tells its number, with their labels and a list."""
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    for index in range(COUNT):
        image = np.full((*SIZE, 3), 40 * index, np.uint8)
        (tmp_path / f'images/{index}.jpg').write_bytes(encode(image, 'JPEG'))
        (tmp_path / f'labels/{index}.png').write_bytes(PNG)
    (tmp_path / 'list.txt').write_text('\n'.join(map(str, range(COUNT))))
    return tmp_path


def put(path, content):
    """Replace a file."""
    path.unlink()
    if content == FOLDER:
        path.mkdir()
    elif content == PIPE:
        os.mkfifo(path)
    elif content == DEAD:
        path.symlink_to('gone')
    elif content == CIRCLE:
        path.symlink_to(path.name)
    elif content != NO_FILE:
        path.write_bytes(content)


def checking(cfg):
    """The dataset of a config, with the transforms that check."""
    check_loading(cfg)
    return DATASETS.build(cfg)


def config(root, *, backend='pillow', ann_file='list.txt', **others):
    pipeline = [STOCK[0], dict(STOCK[1], imdecode_backend=backend), STOCK[2]]
    return dict(
        type='BaseSegDataset',
        data_root=str(root),
        ann_file=ann_file,
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=CLASSES),
        pipeline=pipeline,
        serialize_data=False,  # which takes most of the time
        **others,
    )


def number(sample):
    """Which of the images a sample shows."""
    return round(float(sample['inputs'].float().mean()) / 40)


def check_both_policies(root, path, message, **options):
    """Training and evaluation, told to stop and told to skip, with one file at fault."""
    faulty = int(path.stem)
    message = f'(image|label) {path} .*{message}|(image|label) {path} {message}'
    stopping = checking(config(root, **options))
    assert number(stopping[faulty - 1]) == faulty - 1
    with pytest.raises(DataError, match=message) as caught:
        stopping[faulty]
    assert '\n' not in str(caught.value)
    assert caught.value.path == str(path)

    skipping = SkipFaultyDataset(dataset=config(root, **options), test_mode=False)
    assert len(skipping) == COUNT
    sample = skipping[faulty]
    assert number(sample) != faulty
    skipped = sample['data_samples'].metainfo[SKIPPED_KEY]
    assert {name for name, _ in skipped} == {str(path)}
    assert skipped[0][1] == str(caught.value)
    untouched = skipping[faulty - 1]
    assert number(untouched) == faulty - 1
    assert SKIPPED_KEY not in untouched['data_samples'].metainfo

    evaluated = SkipFaultyDataset(dataset=config(root, **options), test_mode=True)
    assert (len(evaluated), evaluated.full_length) == (COUNT - 1, COUNT)
    assert evaluated.left_out == {str(path): str(caught.value)}
    expected = [index for index in range(COUNT) if index != faulty]
    assert [number(evaluated[index]) for index in range(len(evaluated))] == expected
    names = [os.path.basename(evaluated.get_data_info(i)['img_path']) for i in range(COUNT - 1)]
    assert names == [f'{index}.jpg' for index in expected]


@pytest.mark.parametrize('fault', IMAGE_FAULTS)
def test_image_at_fault(root, fault):
    content, message = IMAGE_FAULTS[fault]
    put(root / 'images/2.jpg', content)
    check_both_policies(root, root / 'images/2.jpg', message)


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
@pytest.mark.parametrize('fault', LABEL_FAULTS)
def test_label_at_fault(root, fault, backend):
    content, message = LABEL_FAULTS[fault]
    put(root / 'labels/2.png', content)
    check_both_policies(root, root / 'labels/2.png', message, backend=backend)


@pytest.mark.parametrize('kind', COLOURED)
def test_label_that_opencv_would_read_as_colours(root, kind):
    put(root / 'labels/2.png', COLOURED[kind])
    message = r"is a (palette|1-bit) image.*use imdecode_backend='pillow'"
    check_both_policies(root, root / 'labels/2.png', message, backend='cv2')


@pytest.mark.parametrize(
    ('kind', 'backend'),
    [
        *((kind, 'pillow') for kind in COLOURED),
        *((kind, backend) for kind in PLAIN for backend in ('pillow', 'cv2')),
    ],
)
def test_label_that_is_read_as_it_is(root, kind, backend):
    (root / 'labels/2.png').write_bytes({**COLOURED, **PLAIN}[kind])
    dataset = SkipFaultyDataset(dataset=config(root, backend=backend), test_mode=False)
    sample = dataset[2]['data_samples']
    assert SKIPPED_KEY not in sample.metainfo
    expected = IDS % 2 if kind.startswith('1-bit') else IDS
    np.testing.assert_array_equal(sample.gt_sem_seg.data[0].numpy(), expected)


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
def test_no_damage_to_a_png_goes_unnoticed(root, backend):
    """Damaged anywhere, a label is either refused or read as it was."""
    dataset = checking(config(root, backend=backend))
    refused = 0
    for start in range(0, len(PNG) - 12, 2):
        content = bytearray(PNG)
        content[start : start + 4] = bytes(4)
        (root / 'labels/2.png').write_bytes(content)
        try:
            label = dataset[2]['data_samples'].gt_sem_seg.data[0].numpy()
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(label, IDS)
    assert refused > 10


@pytest.mark.parametrize('name', ['Straße', '数据 1', 'a b', 'é', "it's", 'a%20b#c', 'x.y'])
@pytest.mark.parametrize('ann_file', ['list.txt', ''])
@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
def test_names_of_files_can_be_any_text(root, name, ann_file, backend):
    (root / 'images/2.jpg').rename(root / f'images/{name}.jpg')
    (root / 'labels/2.png').rename(root / f'labels/{name}.png')
    (root / 'list.txt').write_text(name, encoding='utf-8')
    dataset = checking(config(root, ann_file=ann_file, backend=backend))
    index = next(i for i in range(len(dataset)) if name in dataset.get_data_info(i)['img_path'])
    sample = dataset[index]
    assert number(sample) == 2
    np.testing.assert_array_equal(sample['data_samples'].gt_sem_seg.data[0].numpy(), IDS)
    put(root / f'labels/{name}.png', b'')
    with pytest.raises(DataError) as caught:
        dataset[index]
    assert f'{name}.png is empty' in str(caught.value)


def test_a_name_that_is_no_text_is_printed(root):
    """Messages can be written to any log, whatever bytes a name has."""
    path = os.fsencode(root / 'labels') + b'/M\xfcnchen\n.png'
    os.rename(root / 'images/2.jpg', os.fsencode(root / 'images') + b'/M\xfcnchen\n.jpg')
    with open(path, 'wb'):
        pass
    dataset = SkipFaultyDataset(dataset=config(root, ann_file=''), test_mode=True)
    (text,) = dataset.left_out.values()
    assert r'M\udcfcnchen\n.png is empty' in text.encode('utf-8').decode()


# --- What takes the place of a faulty sample


def test_the_place_of_a_faulty_sample_is_taken_by_all_others(root):
    (root / 'images/2.jpg').unlink()
    dataset = SkipFaultyDataset(dataset=config(root), test_mode=False)
    assert {number(dataset[2]) for _ in range(100)} == {0, 1, 3, 4, 5}


def test_what_takes_its_place_follows_from_the_seed(root):
    for index in (1, 2, 3):
        (root / f'images/{index}.jpg').unlink()
    dataset = SkipFaultyDataset(dataset=config(root), test_mode=False)

    def draw(seed):
        np.random.seed(seed)  # noqa: NPY002  # what a loop with seeded samples does
        sample = dataset[2]
        return number(sample), sample['data_samples'].metainfo[SKIPPED_KEY]

    for seed in range(10):
        assert draw(seed) == draw(seed)
    assert len({draw(seed)[0] for seed in range(20)}) == 3


def test_too_many_in_a_row_are_an_error_that_lists_them(root):
    for index in range(COUNT):
        (root / f'labels/{index}.png').write_bytes(b'')
    dataset = SkipFaultyDataset(dataset=config(root), test_mode=False, max_in_a_row=7)
    message = '7 samples in a row cannot be used.*label .* is empty.*label .* is empty'
    with pytest.raises(DataError, match=message):
        dataset[2]
    with pytest.raises(DataError, match=r'no image can be used: label .*0\.png.* and 3 more'):
        SkipFaultyDataset(dataset=config(root), test_mode=True)


def test_other_errors_are_not_hidden(root):
    """A fault of the settings is no fault of a file."""
    dataset = config(root)
    dataset['pipeline'] = [STOCK[0], dict(STOCK[1], reduce_zero_label=True), STOCK[2]]
    with pytest.warns(UserWarning, match='will be deprecated'):
        skipping = SkipFaultyDataset(dataset=dataset, test_mode=False)
    with pytest.raises(ValueError, match='reduce_zero_label is True in') as caught:
        skipping[2]
    assert not isinstance(caught.value, DataError)


@pytest.mark.parametrize(
    ('label_map', 'outside'),
    [({1: 12}, '{1: 12}'), ({0: 3, 1: 300}, '{1: 300}'), ({2: -1}, '{2: -1}')],
)
def test_a_label_map_that_leads_out_of_the_classes(root, label_map, outside):
    """It would wrap around to another class, or have the files blamed."""
    skipping = SkipFaultyDataset(dataset=config(root), test_mode=False)
    skipping.dataset.get_data_info = lambda index: {
        **BaseSegDataset.get_data_info(skipping.dataset, index),
        'label_map': label_map,
    }
    with pytest.raises(ValueError, match=f'label_map of the dataset makes {outside}') as caught:
        skipping[2]
    assert not isinstance(caught.value, DataError)


def test_evaluation_does_not_change_random_numbers(root):
    dataset = config(root)
    dataset['pipeline'].insert(2, dict(type='RandomFlip', prob=0.5))
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    expected = np.random.rand(), torch.rand(1)  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    SkipFaultyDataset(dataset=dataset, test_mode=True)
    assert (np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002


# --- What it looks like to others


@pytest.mark.parametrize('test_mode', [False, True])
def test_wrappers_inside_and_outside(root, test_mode):
    (root / 'images/2.jpg').unlink()
    inside = dict(
        type='ConcatDataset',
        datasets=[config(root), dict(type='RepeatDataset', times=2, dataset=config(root))],
    )
    wrapped = dict(type='SkipFaultyDataset', test_mode=test_mode, dataset=inside)
    assert [leaf['data_root'] for leaf in iter_datasets(wrapped)] == [str(root)] * 2
    outside = DATASETS.build(dict(type='RepeatDataset', times=2, dataset=wrapped))
    missing = 3 if test_mode else 0
    assert len(outside) == 2 * (3 * COUNT - missing)
    assert outside.metainfo['classes'] == CLASSES
    numbers = [number(outside[index]) for index in range(len(outside))]
    assert 2 not in numbers
    if test_mode:
        assert numbers == [0, 1, 3, 4, 5] * 6
        assert outside.dataset.full_length == 3 * COUNT


def test_lazily_it_reads_nothing_until_it_is_told(root):
    (root / 'images/2.jpg').unlink()
    dataset = SkipFaultyDataset(dataset=config(root), test_mode=True, lazy_init=True)
    assert not dataset.left_out
    dataset.full_init()
    assert len(dataset.left_out) == 1


def test_dead_links_of_a_folder_are_counted(root):
    """A listing passes over them in silence."""
    (root / 'images/7.jpg').symlink_to('gone')
    dataset = SkipFaultyDataset(dataset=config(root, ann_file=''), test_mode=True)
    assert (len(dataset), dataset.full_length) == (COUNT, COUNT + 1)
    assert '7.jpg is a link that leads nowhere' in next(iter(dataset.left_out.values()))


def test_samples_have_to_be_packed(root):
    (root / 'images/2.jpg').unlink()
    dataset = config(root)
    dataset['pipeline'] = STOCK[:2]
    with pytest.raises(ValueError, match='takes samples as PackSegInputs makes them'):
        SkipFaultyDataset(dataset=dataset, test_mode=False)[2]


def test_wrong_arguments(root):
    with pytest.raises(ValueError, match='max_in_a_row is 0; give 1 or more'):
        SkipFaultyDataset(dataset=config(root), test_mode=False, max_in_a_row=0)
    with pytest.raises(TypeError, match='test_mode'):  # neither is a safe guess
        SkipFaultyDataset(dataset=config(root))


# --- The transforms that check


def test_stock_transforms_are_replaced_wherever_they_are(root):
    """And only they are."""
    dataset = config(root)
    views = [[dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)], [dict(type='LoadAnnotations')]]
    dataset['pipeline'] = [
        dict(type='mmcv.LoadImageFromFile', imdecode_backend='pillow', ignore_empty=True),
        dict(type='TestTimeAug', transforms=views),
        dict(type='Resize', scale=(8, 8)),
    ]
    before = dataset['pipeline']
    check_loading(dataset)
    load, augment, resize = dataset['pipeline']
    assert load == dict(type='LoadSegImage', imdecode_backend='pillow')
    assert augment['transforms'][0] == views[0]
    expected = dict(type='LoadSegAnnotations', num_classes=12, ignore_index=255)
    assert augment['transforms'][1] == [expected]
    assert resize == dict(type='Resize', scale=(8, 8))
    assert before[0]['type'] == 'mmcv.LoadImageFromFile'  # it may stand elsewhere, too


@pytest.mark.parametrize('stated', [{}, dict(num_classes=3), dict(num_classes=None)])
def test_labels_are_held_to_the_classes_of_the_data_unless_the_config_says_otherwise(root, stated):
    dataset = config(root, ignore_index=254)
    dataset['pipeline'] = [dict(type='LoadSegAnnotations', **stated)]
    check_loading(dataset)
    (step,) = dataset['pipeline']
    assert step['num_classes'] == stated.get('num_classes', 12)
    assert step['ignore_index'] == 254


def test_transforms_of_others_are_left_alone(root):
    dataset = config(root)
    others = [dict(type='mmdet.LoadAnnotations'), dict(type='LoadImageFromNDArray')]
    dataset['pipeline'] = others
    check_loading(dataset)
    assert dataset['pipeline'] == others


def test_out_of_date_arguments_are_named(root):
    dataset = config(root)
    dataset['pipeline'] = [dict(type='LoadImageFromFile', file_client_args=dict(backend='disk'))]
    with pytest.raises(ConfigError, match=r'file_client_args=.* is out of date; give backend_args'):
        check_loading(dataset)
