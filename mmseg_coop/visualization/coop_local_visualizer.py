"""Pictures of all outputs side by side."""

from __future__ import annotations

import math
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine.dist import master_only
from mmseg.registry import VISUALIZERS
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_BAR = 22  # height of a panel's title and of a row of the legend, in pixels
_GAP = 4  # between panels, in pixels
_MIN_PANEL = 240  # panels are enlarged to this height, so that small images can be judged


@VISUALIZERS.register_module()
class CoopLocalVisualizer(SegLocalVisualizer):
    """Draws input, ground truth and every output in one row, with a legend of the classes.

    A drop-in for mmseg's ``SegLocalVisualizer``; a sample without ``pred_outputs`` shows its
    ``pred_sem_seg``. Ignored pixels (labels outside the classes) stay black.

    Its arguments are those of ``SegLocalVisualizer``.
    """

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray[Any, Any],
        data_sample: SegDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        step: int = 0,
        with_labels: bool | None = True,
        with_image: bool | None = True,
    ) -> None:
        """Draw a sample and hand it to the backends, a window or a file.

        Args:
            name: Name of the picture.
            image: The image, RGB, ``(H, W, 3)``, uint8.
            data_sample: Ground truth and predictions. Defaults to None.
            draw_gt: Whether to draw the ground truth. Defaults to True.
            draw_pred: Whether to draw the predictions. Defaults to True.
            show: Show in a window instead. Defaults to False.
            wait_time: How long to show it, in seconds; 0 waits for a key. Defaults to 0.
            out_file: Write here instead. Defaults to None.
            step: Step of the run. Defaults to 0.
            with_labels: Whether to add the legend. Defaults to True.
            with_image: Whether to add the input. Defaults to True.
        """
        maps = self._label_maps(data_sample, draw_gt, draw_pred)
        panels = {}
        if with_image or not maps:
            panels['input'] = _fit_centre(image, next(iter(maps.values()), image[..., 0]).shape)
        for title, label_map in maps.items():
            panels[title] = self._overlay(image, label_map)
        picture = _side_by_side(panels)
        if with_labels and data_sample is not None:
            picture = np.concatenate([picture, self._legend(picture.shape[1])])
        self.set_image(picture)
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(mmcv.rgb2bgr(picture), out_file)
        elif not show:
            self.add_image(name, picture, step)

    @staticmethod
    def _label_maps(
        data_sample: SegDataSample | None, draw_gt: bool, draw_pred: bool
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Label maps to draw, ``(H, W)``, by title."""
        maps = {}
        if data_sample is not None and draw_gt and 'gt_sem_seg' in data_sample:
            maps['ground truth'] = data_sample.gt_sem_seg.data
        if data_sample is not None and draw_pred:
            if 'pred_outputs' in data_sample:
                for output in data_sample.output_names:
                    maps[output] = data_sample.pred_outputs.get(output)
            elif 'pred_sem_seg' in data_sample:
                maps['prediction'] = data_sample.pred_sem_seg.data
        return {title: label_map.cpu().numpy().squeeze(0) for title, label_map in maps.items()}

    def _overlay(
        self, image: np.ndarray[Any, Any], label_map: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        """Lay the classes' colours over the image, ``(H, W, 3)``."""
        colors = np.zeros((256, 3), np.uint8)
        palette = self.dataset_meta['palette']
        colors[: len(palette)] = palette
        image = _fit_centre(image, label_map.shape)
        blend = image * (1 - self.alpha) + colors[label_map.astype(np.uint8)] * self.alpha
        return blend.astype(np.uint8)

    def _legend(self, width: int) -> np.ndarray[Any, Any]:
        """Names and colours of all classes, ``(H, width, 3)``."""
        classes, palette = self.dataset_meta['classes'], self.dataset_meta['palette']
        column = 40 + max(cv2.getTextSize(name, _FONT, 0.45, 1)[0][0] for name in classes)
        columns = max(1, width // column)
        rows = math.ceil(len(classes) / columns)
        legend = np.full((rows * _BAR + _GAP, width, 3), 255, np.uint8)
        for index, (name, color) in enumerate(zip(classes, palette, strict=True)):
            x, y = (index % columns) * column + _GAP, (index // columns) * _BAR + _GAP
            cv2.rectangle(legend, (x, y), (x + 22, y + 14), [int(c) for c in color], -1)
            cv2.putText(legend, name, (x + 28, y + 12), _FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        return legend


def _fit_centre(image: np.ndarray[Any, Any], size: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Bring an image to the size ``(H, W)`` of its label maps.

    They differ where the centre crop was evaluated: the centre of the image with their aspect ratio
    is what they show.
    """
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    scale = max(size[0] / height, size[1] / width)
    crop = (min(width, round(size[1] / scale)), min(height, round(size[0] / scale)))
    left, top = (width - crop[0]) // 2, (height - crop[1]) // 2
    centre = image[top : top + crop[1], left : left + crop[0]]
    return cv2.resize(centre, (size[1], size[0]))


def _side_by_side(panels: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Put titled panels in one row, ``(H, W, 3)``, all at the size of the first."""
    height, width = next(iter(panels.values())).shape[:2]
    scale = max(1, math.ceil(_MIN_PANEL / height))
    size = (width * scale, height * scale)
    row = []
    for title, panel in panels.items():
        bar = np.full((_BAR, size[0], 3), 255, np.uint8)
        cv2.putText(bar, title, (_GAP, _BAR - 7), _FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        enlarged = cv2.resize(panel, size, interpolation=cv2.INTER_NEAREST)
        gap = np.full((_BAR + size[1], _GAP, 3), 255, np.uint8)
        row += [np.concatenate([bar, enlarged]), gap]
    return np.concatenate(row[:-1], axis=1)
