"""NYUv2, rooms in colour and depth, in 40 classes."""

from __future__ import annotations

from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS


@DATASETS.register_module()
class NYUv2Dataset(BaseSegDataset):
    """NYU Depth V2: 1449 images of rooms with their depth, in 40 classes.

    Silberman, Hoiem, Kohli and Fergus, "Indoor segmentation and support inference from RGBD
    images", ECCV 2012; the 40 classes are those of Gupta, Arbeláez and Malik, "Perceptual
    organization and recognition of indoor scenes from RGB-D images", CVPR 2013. 795 images are for
    training and 654 for testing. The folders are those that repositories of RGB-D segmentation use,
    DFormer's for example::

        data_root/RGB/NAME{img_suffix}
        data_root/Depth/NAME.png        which LoadSecondImage loads
        data_root/Label/NAME{seg_map_suffix}
        data_root/{train,test}.txt      a NAME a line, for ann_file

    Labels are 1 to 40, and 0 where there is none, which ``reduce_zero_label`` makes 0 to 39 and
    255. mmseg's ``NYUDataset`` is for the estimation of depth and has no classes.

    Args:
        img_suffix: Ending of the images' names. Defaults to ``'.jpg'``.
        seg_map_suffix: Ending of the labels' names. Defaults to ``'.png'``.
        reduce_zero_label: Whether labels start at 1. Defaults to True.
        **kwargs: What :class:`mmseg.datasets.BaseSegDataset` takes, such as ``data_root``,
            ``data_prefix``, ``ann_file`` and ``pipeline``.

    Example:
        >>> from mmseg_coop.datasets import NYUv2Dataset
        >>> NYUv2Dataset.METAINFO['classes'][28], len(NYUv2Dataset.METAINFO['palette'])
        ('box', 40)
    """

    METAINFO: ClassVar[dict[str, Any]] = dict(
        classes=(
            *('wall', 'floor', 'cabinet', 'bed', 'chair', 'sofa', 'table', 'door', 'window'),
            *('bookshelf', 'picture', 'counter', 'blinds', 'desk', 'shelves', 'curtain'),
            *('dresser', 'pillow', 'mirror', 'floor mat', 'clothes', 'ceiling', 'books'),
            *('refrigerator', 'television', 'paper', 'towel', 'shower curtain', 'box'),
            *('whiteboard', 'person', 'night stand', 'toilet', 'sink', 'lamp', 'bathtub', 'bag'),
            *('other structure', 'other furniture', 'other prop'),
        ),
        # Bits 0, 3, 6 of an index are the top bits of red, and so on, as in Pascal VOC.
        palette=[
            [sum((index >> (3 * k + c) & 1) << (7 - k) for k in range(3)) for c in range(3)]
            for index in range(1, 41)
        ],
    )

    def __init__(
        self,
        *,
        img_suffix: str = '.jpg',
        seg_map_suffix: str = '.png',
        reduce_zero_label: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            reduce_zero_label=reduce_zero_label,
            **kwargs,
        )
