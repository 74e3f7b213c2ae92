from __future__ import annotations

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmseg_coop.apis import check_data
from mmseg_coop.errors import ConfigError


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


LOAD, OUR_LOAD = dict(type='LoadImageFromFile'), dict(type='LoadSegImage')
LABELS, OUR_LABELS = dict(type='LoadAnnotations'), dict(type='LoadSegAnnotations', num_classes=19)
RESIZE = dict(type='Resize', scale=(4, 2))
CROP = dict(type='CenterCrop', crop_size=(2, 2))
PACK = dict(type='PackSegInputs')


def validate_with(cityscapes, *pipeline):
    """Validate on the training image."""
    dataset = cityscapes.train_dataloader.dataset.datasets[0]
    cityscapes.val_dataloader.dataset = {**dataset, 'pipeline': list(pipeline)}
    check_data(cityscapes, splits=('val',))


@pytest.mark.parametrize(
    ('pipeline', 'index', 'name'),
    [
        ((LOAD, LABELS, RESIZE, PACK), 2, 'Resize'),
        ((OUR_LOAD, OUR_LABELS, RESIZE, PACK), 2, 'Resize'),
        ((LABELS, LOAD, dict(type='RandomFlip', prob=0.5), RESIZE, PACK), 3, 'Resize'),
        ((LOAD, LABELS, CROP, PACK), 2, 'CenterCrop'),
        ((LOAD, RESIZE, LABELS, dict(type='Pad', size=(8, 8)), PACK), 3, 'Pad'),
    ],
)
def test_labels_resized_in_an_evaluation_are_named_at_the_start(cityscapes, pipeline, index, name):
    message = (
        rf'val_dataloader.dataset.pipeline.{index} \({name}\) turns the label of '
        r'.*a_leftImg8bit.png into \dx\d, but predictions are evaluated at 4x8 .*load labels behind'
    )
    with pytest.raises(ConfigError, match=message):
        validate_with(cityscapes, *pipeline)


@pytest.mark.parametrize(
    'pipeline',
    [
        (LOAD, RESIZE, LABELS, PACK),
        (OUR_LOAD, RESIZE, OUR_LABELS, PACK),
        (OUR_LOAD, OUR_LABELS, dict(type='EvalCenterCrop', crop_size=(2, 2)), PACK),
        (LOAD, LABELS, RESIZE, dict(type='EvalCenterCrop', crop_size=(2, 2)), PACK),
        (LOAD, RESIZE, PACK),
        (LOAD, dict(type='TestTimeAug', transforms=[[RESIZE], [LABELS], [PACK]])),
    ],
)
def test_evaluations_whose_labels_keep_their_size_pass(cityscapes, pipeline):
    validate_with(cityscapes, *pipeline)


def test_images_without_labels_pass(cityscapes):
    del cityscapes.train_dataloader.dataset.datasets[0].data_prefix['seg_map_path']
    validate_with(cityscapes, LOAD, LABELS, PACK)


def test_a_file_that_cannot_be_used_is_left_to_the_run(cityscapes, tmp_path):
    (tmp_path / 'gtFine/train/city/a_gtFine_labelTrainIds.png').write_bytes(b'')
    validate_with(cityscapes, LOAD, LABELS, RESIZE, PACK)


def test_a_transform_that_cannot_be_built_is_named_by_its_path(cityscapes):
    with pytest.raises(ConfigError, match=r'val_dataloader\.dataset\.pipeline\.1.*Resize'):
        validate_with(cityscapes, LOAD, dict(type='Resize', scal=(4, 2)), LABELS, PACK)
