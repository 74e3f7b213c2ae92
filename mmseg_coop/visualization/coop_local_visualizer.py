"""Figures of all outputs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from mmengine.dist import master_only
from mmseg.registry import VISUALIZERS
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer
from typing_extensions import override

from .panels import fit_centre, grid, label_maps, legend, overlay


@VISUALIZERS.register_module()
class CoopLocalVisualizer(SegLocalVisualizer):
    """Draws input, ground truth and every output in one row, with a legend of the classes.

    A drop-in for mmseg's ``SegLocalVisualizer``; a sample without ``pred_outputs`` shows its
    ``pred_sem_seg``. Ignored pixels (labels outside the classes) stay black.

    Its arguments are those of ``SegLocalVisualizer``, and so are those of ``add_datasample``, but
    that ``with_labels`` adds the legend, ``with_image`` the input, and ``further``, ``(C, H, W)``,
    a grey panel for each of its channels, from its lowest value to its highest.
    """

    @override
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
        further: Sequence[np.ndarray[Any, Any]] = (),
    ) -> None:
        maps = label_maps(data_sample, truth=draw_gt, predictions=draw_pred)
        panels = {}
        if with_image or not maps:
            panels['input'] = fit_centre(image, next(iter(maps.values()), image[..., 0]).shape)
        for index, channel in enumerate(further, 3):
            grey = np.interp(channel, (channel.min(), channel.max()), (0, 255))
            panels[f'channel {index}'] = mmcv.gray2rgb(grey.astype(np.uint8))
        for title, label_map in maps.items():
            panels[title] = overlay(
                image, label_map, self.dataset_meta['palette'], alpha=self.alpha
            )
        canvas = grid(panels)
        if with_labels and data_sample is not None:
            names, colors = self.dataset_meta['classes'], self.dataset_meta['palette']
            canvas = np.concatenate([canvas, legend(names, colors, canvas.shape[1])])
        self.set_image(canvas)
        if show:
            self.show(canvas, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(mmcv.rgb2bgr(canvas), out_file)
        elif not show:
            self.add_image(name, canvas, step)
