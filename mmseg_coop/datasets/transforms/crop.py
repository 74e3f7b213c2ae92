"""Centre crop for evaluation."""

from __future__ import annotations

from typing import Any

from mmcv.transforms import CenterCrop
from mmseg.registry import TRANSFORMS
from typing_extensions import override


@TRANSFORMS.register_module()
class EvalCenterCrop(CenterCrop):
    """Crop the centre of image and label and evaluate on the crop.

    Only what is compared with a label is cropped: an image that comes without one, as mmseg's
    inferencers load it, stays whole.

    mmseg resizes predictions to ``ori_shape``, which mmcv's ``CenterCrop`` leaves at the size of
    the file, so that prediction and cropped label no longer match. Here it follows the crop. Put it
    behind the loading of the label and the resizing: both are cropped alike.

    Its arguments are those of mmcv's ``CenterCrop``; ``crop_size`` is ``(width, height)``.

    Raises:
        ValueError: At cropping, if the dataset names a label file that is not loaded yet.
    """

    @override
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if 'gt_seg_map' not in results:
            if 'seg_map_path' in results:
                raise ValueError(
                    f'EvalCenterCrop gets an image whose label {results["seg_map_path"]} is not '
                    'loaded; put it behind LoadSegAnnotations or LoadAnnotations.'
                )
            return results
        results = super().transform(results)
        results['ori_shape'] = results['img'].shape[:2]
        return results
