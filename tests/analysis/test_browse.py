from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_coop.datasets import CamVidDataset
from tests.conftest import MINI

TOOL = 'tools/analysis_tools/browse_dataset.py'
RED = (254, 0, 0)


@pytest.fixture
def data_root(tmp_path):
    """Two red images of 16 x 24 pixels, road on the left half and sky on the right."""
    root = tmp_path / 'data'
    for kind in ('img_dir', 'ann_dir'):
        (root / kind / 'train').mkdir(parents=True)
    label = np.zeros((16, 24), np.uint8)
    label[:, :12] = 3
    label[:4] = 255
    for index in range(2):
        image = np.full((16, 24, 3), RED, np.uint8)
        Image.fromarray(image).save(root / f'img_dir/train/{index}.jpg', quality=100)
        Image.fromarray(label).save(root / f'ann_dir/train/{index}.png')
    return root


@pytest.fixture
def browse(data_root, tool, tmp_path):
    """Run the tool with a pipeline of nothing but the loading, and a flip."""

    def run(*words, flip=0.0):
        steps = 'train_dataloader.dataset.pipeline'
        options = [
            f'train_dataloader.dataset.data_root={data_root}',
            f'{steps}.2.scale=(24,16)',
            f'{steps}.2.ratio_range=(1.0,1.0)',
            f'{steps}.3.crop_size=(16,24)',
            f'{steps}.3.cat_max_ratio=1.0',
            f'{steps}.4.prob={flip}',
        ]
        return tool(TOOL, MINI, '--out', tmp_path / 'out', *words, '--cfg-options', *options)

    return run


def test_figures_show_what_the_pipeline_feeds(browse, tmp_path):
    done = browse('--number', 5, flip=1.0)
    assert done.returncode == 0, done.stderr
    out = tmp_path / 'out'
    assert sorted(p.name for p in out.iterdir()) == ['000000_0.png', '000001_1.png']
    line = '000001_1.png: 16x24 uint8, flipped, sky 37.5 %, road 37.5 %, ignored 25.0 %'
    assert line in done.stdout
    figure = cv2.imread(str(out / '000000_0.png'))[..., ::-1].astype(int)
    # Two panels of 15 times the size under titles of 22 pixels, 4 pixels apart.
    image, labels = figure[22:262, :360], figure[22:262, 364:724]
    np.testing.assert_allclose(image[120, 180], RED, atol=3)
    palette = CamVidDataset.METAINFO['palette']
    for column, name in ((90, 'sky'), (270, 'road')):  # flipped
        color = palette[CamVidDataset.METAINFO['classes'].index(name)]
        strength = labels[200, column, 1:] / color[1:]  # red is the image's
        assert strength.min() > 0.3
        assert np.ptp(strength) < 0.05
    np.testing.assert_array_less(labels[20, 90, 1:], 5)  # ignored


def test_test_images_are_shown_as_the_evaluation_loads_them(data_root, tool, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # viewers turn it by 180 degrees
    image = np.full((16, 24, 3), RED, np.uint8)
    image[8:] = 0
    Image.fromarray(image).save(data_root / 'img_dir/train/0.jpg', quality=100, exif=exif)
    prefix = 'test_dataloader.dataset.data_prefix'
    done = tool(
        *(TOOL, MINI, '--split', 'test', '--number', 1, '--out', tmp_path / 'out'),
        *('--cfg-options', f'test_dataloader.dataset.data_root={data_root}'),
        *(f'{prefix}.img_path=img_dir/train', f'{prefix}.seg_map_path=ann_dir/train'),
    )
    assert done.returncode == 0, done.stderr
    figure = cv2.imread(str(tmp_path / 'out/000000_0.png'))[..., ::-1].astype(int)
    np.testing.assert_allclose(figure[22 + 60, 180], RED, atol=3)
    np.testing.assert_allclose(figure[22 + 180, 180], 0, atol=3)


def test_views_are_random_and_repeatable_and_replaced_on_demand(browse, tmp_path):
    shown = []
    for force in ((), ('--force',)):
        done = browse('--views', 6, '--number', 1, '--start', 1, *force, flip=0.5)
        assert done.returncode == 0, done.stderr
        files = sorted((tmp_path / 'out').iterdir())
        assert [file.name for file in files] == [f'000001_1_{view}.png' for view in range(6)]
        shown.append([file.read_bytes() for file in files])
        files[0].write_bytes(b'old')
        assert 0 < done.stdout.count('flipped') < 6
    assert shown[0] == shown[1]
    assert len(set(shown[0])) == 2
