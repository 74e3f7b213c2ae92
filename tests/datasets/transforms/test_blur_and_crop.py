from __future__ import annotations

import numpy as np
import pytest

from mmseg_coop.datasets import EvalCenterCrop, RandomGaussianBlur


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_blur_spreads_a_point_by_sigma():
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    blurred = RandomGaussianBlur(prob=1, sigma_range=(2, 2)).transform(dict(img=point))['img']
    weights = blurred[..., 0]
    x = np.arange(41) - 20
    assert weights.sum() == pytest.approx(1, abs=1e-3)
    assert np.sqrt((weights.sum(0) * x**2).sum()) == pytest.approx(2, rel=0.05)


def test_blur_leaves_labels_and_other_images_alone(image):
    label = np.zeros((60, 80), np.uint8)
    never = RandomGaussianBlur(prob=0).transform(dict(img=image.copy(), gt_seg_map=label))
    assert np.array_equal(never['img'], image)
    always = RandomGaussianBlur(prob=1, sigma_range=(1, 1)).transform(
        dict(img=image.copy(), gt_seg_map=label)
    )
    assert not np.array_equal(always['img'], image)
    assert always['gt_seg_map'] is label


def test_blur_happens_as_often_as_asked(image):
    transform = RandomGaussianBlur(prob=0.3)
    changed = [
        not np.array_equal(transform.transform(dict(img=image.copy()))['img'], image)
        for _ in range(300)
    ]
    # a fifth of the drawn kernels, those below sigma 0.2 or so, change no pixel
    assert 0.15 < np.mean(changed) < 0.4


@pytest.mark.parametrize(
    'kwargs', [dict(prob=1.5), dict(sigma_range=(2, 1)), dict(sigma_range=1 * (0.5,))]
)
def test_blur_refuses_wrong_arguments(kwargs):
    with pytest.raises(ValueError, match=f'{next(iter(kwargs))}='):
        RandomGaussianBlur(**kwargs)


def test_crop_takes_the_centre_and_moves_ori_shape(image):
    label = np.arange(60 * 80).reshape(60, 80)
    results = dict(img=image, gt_seg_map=label, ori_shape=(120, 160), img_shape=(60, 80))
    cropped = EvalCenterCrop(crop_size=(40, 20)).transform(results)  # (width, height)
    assert np.array_equal(cropped['img'], image[20:40, 20:60])
    assert np.array_equal(cropped['gt_seg_map'], label[20:40, 20:60])
    assert cropped['ori_shape'] == cropped['img_shape'] == (20, 40)


def test_images_without_labels_are_not_cropped(image):
    results = dict(img=image, ori_shape=(120, 160), img_shape=(60, 80))
    whole = EvalCenterCrop(crop_size=(40, 20)).transform(dict(results))
    assert whole['img'] is image
    assert whole['ori_shape'] == (120, 160)
    with pytest.raises(ValueError, match=r'label a\.png is not loaded; put it behind LoadSegAnn'):
        EvalCenterCrop(crop_size=(40, 20)).transform(dict(results, seg_map_path='a.png'))
