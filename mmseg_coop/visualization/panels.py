"""Parts of a figure: label maps over images, titled panels in a grid, legends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from mmseg.structures import SegDataSample

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_BAR = 22  # height of a panel's title and of a row of the legend, in pixels
_GAP = 4  # between panels, in pixels
_MIN_PANEL = 240  # panels are enlarged to this height, so that small images can be judged


def label_maps(
    data_sample: SegDataSample | None, *, truth: bool = True, predictions: bool = True
) -> dict[str, np.ndarray[Any, Any]]:
    """Take the label maps out of a sample.

    Args:
        data_sample: A sample as a model predicts it, or None.
        truth: Whether to take the ground truth. Defaults to True.
        predictions: Whether to take the predictions. Defaults to True.

    Returns:
        Label maps ``(H, W)`` by title, which is ``ground truth``, the name of an output, or
        ``prediction`` for a model without named outputs. What the sample lacks is left out.
    """
    maps = {}
    if data_sample is not None and truth and 'gt_sem_seg' in data_sample:
        maps['ground truth'] = data_sample.gt_sem_seg.data
    if data_sample is not None and predictions:
        if 'pred_outputs' in data_sample:
            for output in data_sample.output_names:
                maps[output] = data_sample.pred_outputs.get(output)
        elif 'pred_sem_seg' in data_sample:
            maps['prediction'] = data_sample.pred_sem_seg.data
    return {title: label_map.cpu().numpy().squeeze(0) for title, label_map in maps.items()}


def overlay(
    image: np.ndarray[Any, Any],
    label_map: np.ndarray[Any, Any],
    palette: Sequence[Sequence[int]],
    *,
    alpha: float,
) -> np.ndarray[Any, Any]:
    """Lay the colours of a label map over an image.

    Args:
        image: ``(H, W, 3)``, RGB, uint8; of another size, its centre is taken.
        label_map: ``(H, W)``; labels outside the palette become black.
        palette: RGB colour of each label.
        alpha: Share of the colours, 0 to 1.

    Returns:
        ``(H, W, 3)``, RGB, uint8, of the label map's size.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    image = fit_centre(image, label_map.shape)
    blend = image * (1 - alpha) + colors[label_map.astype(np.uint8)] * alpha
    return blend.astype(np.uint8)


def legend(
    names: Sequence[str], colors: Sequence[Sequence[int]], width: int
) -> np.ndarray[Any, Any]:
    """Draw names beside their colours, in as many columns as fit.

    Args:
        names: The names.
        colors: Their RGB colours.
        width: Width in pixels.

    Returns:
        ``(H, width, 3)``, RGB, uint8.
    """
    column = 40 + max(_text_width(name, 0.45) for name in names)
    columns = max(1, width // column)
    rows = math.ceil(len(names) / columns)
    canvas = np.full((rows * _BAR + _GAP, width, 3), 255, np.uint8)
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        x, y = (index % columns) * column + _GAP, (index // columns) * _BAR + _GAP
        cv2.rectangle(canvas, (x, y), (x + 22, y + 14), [int(c) for c in color], -1)
        cv2.putText(canvas, name, (x + 28, y + 12), _FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas


def fit_centre(image: np.ndarray[Any, Any], size: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Bring an image to the size of its label maps.

    They differ where the centre crop was evaluated: the centre of the image with their aspect ratio
    is what they show.

    Args:
        image: ``(H, W, 3)``.
        size: Height and width wanted.

    Returns:
        The image at that size.
    """
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    scale = max(size[0] / height, size[1] / width)
    crop = (min(width, round(size[1] / scale)), min(height, round(size[0] / scale)))
    left, top = (width - crop[0]) // 2, (height - crop[1]) // 2
    centre = image[top : top + crop[1], left : left + crop[0]]
    return cv2.resize(centre, (size[1], size[0]))


def grid(
    panels: Mapping[str, np.ndarray[Any, Any]], *, columns: int | None = None
) -> np.ndarray[Any, Any]:
    """Put titled panels side by side, all at the size of the first; small ones are enlarged.

    Args:
        panels: Panels ``(H, W, 3)``, RGB, uint8, by title.
        columns: Panels in a row. Defaults to None: all of them.

    Returns:
        ``(H, W, 3)``, RGB, uint8.
    """
    height, width = next(iter(panels.values())).shape[:2]
    scale = max(1, math.ceil(_MIN_PANEL / height))
    width, height = size = (width * scale, height * scale)
    columns = min(columns or len(panels), len(panels))
    rows = math.ceil(len(panels) / columns)
    shape = (rows * (_BAR + height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    canvas = np.full(shape, 255, np.uint8)
    for index, (title, panel) in enumerate(panels.items()):
        y, x = index // columns * (_BAR + height + _GAP), index % columns * (width + _GAP)
        bar = canvas[y : y + _BAR, x : x + width]
        font_scale = min(0.5, 0.5 * (width - 2 * _GAP) / max(1, _text_width(title, 0.5)))
        # Drawn into a copy, since opencv does not take every view of an array.
        titled = cv2.putText(
            bar.copy(), title, (_GAP, _BAR - 7), _FONT, font_scale, (0, 0, 0), 1, cv2.LINE_AA
        )
        canvas[y : y + _BAR, x : x + width] = titled
        enlarged = cv2.resize(panel, size, interpolation=cv2.INTER_NEAREST)
        canvas[y + _BAR : y + _BAR + height, x : x + width] = enlarged
    return canvas


def _text_width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, 1)[0][0])
