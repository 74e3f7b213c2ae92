"""CamVid in its usual 11 classes."""

from __future__ import annotations

from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from typing_extensions import override

from ..errors import DataError


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """CamVid: 701 frames of driving scenes, in the 11 classes and the palette of SegNet.

    Brostow, Fauqueur and Cipolla, "Semantic object classes in video: A high-definition ground truth
    database", Pattern Recognition Letters 2009; the 11 classes are those of Badrinarayanan, Kendall
    and Cipolla, "SegNet", TPAMI 2017. Label 255 is ignored. The folders are::

        data_root/img_dir/{train,val,test}/NAME{img_suffix}
        data_root/ann_dir/{train,val,test}/NAME{seg_map_suffix}

    which ``tools/dataset_converters/camvid.py`` makes from SegNet's release.

    Args:
        img_suffix: Ending of the images' names. Default: '.jpg'; '.png' for what the converter
            makes without ``--jpeg``.
        seg_map_suffix: Ending of the labels' names. Default: '.png'.
        **kwargs: What :class:`mmseg.datasets.BaseSegDataset` takes, such as ``data_root``,
            ``data_prefix`` and ``pipeline``.

    Raises:
        DataError: If no image is found.

    Example:
        >>> from mmseg_coop.datasets import CamVidDataset
        >>> CamVidDataset.METAINFO['classes'][3], CamVidDataset.METAINFO['palette'][3]
        ('road', [128, 64, 128])
    """

    METAINFO: ClassVar[dict[str, Any]] = dict(
        classes=(
            'sky',
            'building',
            'pole',
            'road',
            'sidewalk',
            'tree',
            'sign',
            'fence',
            'car',
            'pedestrian',
            'bicyclist',
        ),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )

    def __init__(
        self, *, img_suffix: str = '.jpg', seg_map_suffix: str = '.png', **kwargs: Any
    ) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)

    @override
    def load_data_list(self) -> list[dict[str, Any]]:
        data_list = super().load_data_list()
        if not data_list:
            raise DataError(
                f'no *{self.img_suffix} image in {self.data_prefix["img_path"]}; check data_root '
                "and data_prefix, and set img_suffix to the images' ending, such as '.png'"
            )
        return data_list
