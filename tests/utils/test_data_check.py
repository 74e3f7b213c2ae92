from __future__ import annotations

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmseg_coop.utils import check_data


@pytest.fixture
def cityscapes(tmp_path):
    """Config of a Cityscapes folder with one training image and no validation image."""
    for folder in ('leftImg8bit/train/city', 'gtFine/train/city', 'leftImg8bit/val', 'gtFine/val'):
        (tmp_path / folder).mkdir(parents=True)
    image = np.zeros((4, 8, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'leftImg8bit/train/city/a_leftImg8bit.png'), image)
    cv2.imwrite(str(tmp_path / 'gtFine/train/city/a_gtFine_labelTrainIds.png'), image[..., 0])

    def dataset(split):
        prefix = dict(img_path=f'leftImg8bit/{split}', seg_map_path=f'gtFine/{split}')
        return dict(type='CityscapesDataset', data_root=str(tmp_path), data_prefix=prefix)

    return Config(
        dict(
            train_dataloader=dict(
                dataset=dict(type='ConcatDataset', datasets=[dataset('train'), dataset('train')])
            ),
            val_dataloader=dict(
                dataset=dict(type='RepeatDataset', times=2, dataset=dataset('val'))
            ),
        )
    )


def test_complete_data_pass(cityscapes):
    check_data(cityscapes, splits=('train',))


def test_an_empty_split_is_named(cityscapes):
    with pytest.raises(ValueError, match=r'val split is empty: CityscapesDataset.*_leftImg8bit'):
        check_data(cityscapes)


def test_a_missing_folder_is_named(cityscapes):
    cityscapes.train_dataloader.dataset.datasets[1].data_prefix.seg_map_path = 'gtFine/tain'
    with pytest.raises(FileNotFoundError, match=r"seg_map_path '.*gtFine/tain' of the train split"):
        check_data(cityscapes)


def test_a_missing_list_is_named(cityscapes):
    cityscapes.val_dataloader.dataset.dataset.ann_file = 'val.txt'
    with pytest.raises(FileNotFoundError, match=r"ann_file '.*val.txt' of the val split"):
        check_data(cityscapes)


def test_a_missing_root_says_how_to_set_it(cityscapes):
    cityscapes.val_dataloader.dataset.dataset.data_root = '/nowhere'
    with pytest.raises(FileNotFoundError, match=r'--cfg-options val_dataloader.*data_root=DIR'):
        check_data(cityscapes)
