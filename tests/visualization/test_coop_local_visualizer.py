from __future__ import annotations

import mmcv
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmseg_coop.visualization import CoopLocalVisualizer
from tests.visualization.test_panels import panel

CLASSES = ['road', 'car', 'tree']
PALETTE = [[250, 0, 0], [0, 250, 0], [0, 0, 250]]


@pytest.fixture
def visualizer(tmp_path):
    visualizer = CoopLocalVisualizer(vis_backends=[dict(type='LocalVisBackend')], save_dir=tmp_path)
    visualizer.dataset_meta = dict(classes=CLASSES, palette=PALETTE)
    visualizer.alpha = 1.0
    return visualizer


def make_sample(names=('top', 'bottom', 'ensemble'), size=(240, 100)):
    sample = SegDataSample()
    label = torch.zeros(1, *size, dtype=torch.long)
    label[:, :10] = 255
    sample.gt_sem_seg = PixelData(data=label)
    maps = {name: torch.full((1, *size), index) for index, name in enumerate(names)}
    sample.pred_sem_seg = PixelData(data=maps[names[0]])
    if len(names) > 1:
        sample.pred_outputs = PixelData(**maps)
        sample.set_metainfo(dict(output='top', output_names=names))
    return sample


def test_input_truth_and_all_outputs_stand_side_by_side(visualizer, tmp_path):
    image = np.full((240, 100, 3), 77, np.uint8)
    file = tmp_path / 'canvas.png'
    visualizer.add_datasample('canvas', image, make_sample(), out_file=str(file))
    canvas = mmcv.imread(str(file), channel_order='rgb')
    given, truth, top, bottom, ensemble = (panel(canvas, 0, column) for column in range(5))
    assert (given == 77).all()
    assert (truth[:10] == 0).all()  # ignored pixels
    assert (truth[10:] == PALETTE[0]).all()
    for drawn, color in zip((top, bottom, ensemble), PALETTE, strict=True):
        assert (drawn == color).all()
    legend = canvas[262:].reshape(-1, 3)
    for color in PALETTE:
        assert (legend == color).all(axis=1).any()


def test_a_plain_model_shows_its_prediction(visualizer, tmp_path):
    file = tmp_path / 'canvas.png'
    image = np.zeros((240, 100, 3), np.uint8)
    visualizer.add_datasample('canvas', image, make_sample(names=('top',)), out_file=str(file))
    canvas = mmcv.imread(str(file), channel_order='rgb')
    assert canvas.shape[1] == 3 * 100 + 2 * 4
    assert (panel(canvas, 0, 2) == PALETTE[0]).all()


def test_small_images_are_enlarged_and_other_sizes_fitted(visualizer):
    image = np.zeros((60, 25, 3), np.uint8)
    visualizer.add_datasample('canvas', image, make_sample(size=(120, 50)))
    canvas = visualizer.get_image()
    assert canvas.shape[1] == 5 * 100 + 4 * 4


def test_the_canvas_reaches_the_backend(visualizer, tmp_path):
    visualizer.add_datasample('canvas', np.zeros((240, 100, 3), np.uint8), make_sample(), step=3)
    assert [p.name for p in tmp_path.rglob('canvas_3.png')] == ['canvas_3.png']


def test_an_evaluated_centre_crop_shows_the_centre_of_the_image(visualizer):
    image = np.zeros((240, 400, 3), np.uint8)
    image[:, 80:320] = 99  # what the centre crop holds
    visualizer.add_datasample('canvas', image, make_sample(size=(300, 300)))
    panel = visualizer.get_image()[22 : 22 + 300, :300]
    assert (panel == 99).all()
