"""MFNet, streets in colour and thermal infrared, in 9 classes."""

from __future__ import annotations

from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS


@DATASETS.register_module()
class MFNetDataset(BaseSegDataset):
    """MFNet: 1569 street images in colour and thermal infrared, by day and night, in 9 classes.

    Ha, Watanabe, Karasawa, Ushiku and Harada, "MFNet: Towards real-time semantic segmentation for
    autonomous vehicles with multi-spectral scenes", IROS 2017. The folders are those of its
    release::

        data_root/images/NAME{img_suffix}       four channels, the last one thermal
        data_root/labels/NAME{seg_map_suffix}
        data_root/{train,val,test}.txt          a NAME a line, for ann_file

    An image is loaded with all channels by ``LoadSegImage(color_type='unchanged')``. Unlabelled
    pixels are a class of their own, as in the release.

    Args:
        img_suffix: Ending of the images' names. Defaults to ``'.png'``.
        seg_map_suffix: Ending of the labels' names. Defaults to ``'.png'``.
        **kwargs: What :class:`mmseg.datasets.BaseSegDataset` takes, such as ``data_root``,
            ``data_prefix``, ``ann_file`` and ``pipeline``.

    Example:
        >>> from mmseg_coop.datasets import MFNetDataset
        >>> MFNetDataset.METAINFO['classes'][2], MFNetDataset.METAINFO['palette'][2]
        ('person', [64, 64, 0])
    """

    METAINFO: ClassVar[dict[str, Any]] = dict(
        classes=(
            'unlabeled',
            'car',
            'person',
            'bike',
            'curve',
            'car_stop',
            'guardrail',
            'color_cone',
            'bump',
        ),
        palette=[
            [0, 0, 0],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
            [0, 0, 192],
            [128, 128, 0],
            [64, 64, 128],
            [192, 128, 128],
            [192, 64, 0],
        ],
    )

    def __init__(
        self, *, img_suffix: str = '.png', seg_map_suffix: str = '.png', **kwargs: Any
    ) -> None:
        super().__init__(
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            reduce_zero_label=False,
            **kwargs,
        )
