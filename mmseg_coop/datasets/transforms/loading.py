"""Loading of images and label maps that names the file at fault and what is wrong with it.

A broken file or a label outside the classes otherwise surfaces far from its cause: as an
``IndexError`` deep in the cross entropy, as a device-side assertion on a GPU, or not at all (OpenCV
4 fills up a truncated JPEG file with grey).
"""

from __future__ import annotations

from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

_JPEG_START, _JPEG_END, _JPEG_SCAN = b'\xff\xd8', b'\xff\xd9', b'\xff\xda'
_PNG_START, _PNG_END = b'\x89PNG\r\n\x1a\n', b'IEND'


def _is_truncated(content: bytes) -> bool:
    """Returns whether a JPEG or PNG file ends before its picture; False for other formats."""
    if content.startswith(_PNG_START):
        return content.rfind(_PNG_END) == -1
    if not content.startswith(_JPEG_START) or content.endswith(_JPEG_END):
        return False
    # Other bytes may follow the end marker, and an embedded thumbnail has an end marker too: walk
    # over the header's segments, each a marker and a length, and search behind it.
    position = 2
    while (
        content[position : position + 1] == b'\xff'
        and content[position : position + 2] != _JPEG_SCAN
    ):
        position += 2 + int.from_bytes(content[position + 2 : position + 4], 'big')
    return content.find(_JPEG_END, position) == -1


def _load(
    kind: str, path: str, flag: str, backend: str, backend_args: dict[str, Any] | None
) -> np.ndarray:
    """Reads and decodes a picture.

    Args:
        kind: 'image' or 'label', for the messages.
        path: Path of the file, or its address where a file backend takes one.
        flag: How to decode, see :func:`mmcv.imfrombytes`.
        backend: What decodes, see :func:`mmcv.imfrombytes`.
        backend_args: Arguments of the file backend.

    Returns:
        The picture, of shape (H, W) or (H, W, C).

    Raises:
        ValueError: If the file is missing, unreadable, empty, truncated or not a picture.
    """
    try:
        content = fileio.get(path, backend_args=backend_args)
    except Exception as error:
        raise ValueError(
            f'{kind} {path} cannot be read ({type(error).__name__}: {error}); check data_root, '
            'data_prefix, ann_file and the suffixes of the dataset'
        ) from error
    if not content:
        raise ValueError(f'{kind} {path} is empty (0 bytes); restore the file')
    if _is_truncated(content):
        raise ValueError(
            f'{kind} {path} is truncated: its {len(content)} bytes end before the picture does; '
            'restore the file'
        )
    try:
        picture = mmcv.imfrombytes(content, flag=flag, backend=backend)
    except Exception as error:
        raise ValueError(
            f'{kind} {path} cannot be decoded by {backend} ({type(error).__name__}: {error}); '
            'restore the file, or choose another imdecode_backend if its format needs one'
        ) from error
    if picture is None:  # what OpenCV returns instead of raising an error
        raise ValueError(
            f'{kind} {path} cannot be decoded by {backend}; restore the file, or choose another '
            'imdecode_backend if its format needs one'
        )
    return picture


@TRANSFORMS.register_module()
class LoadSegImage(LoadImageFromFile):
    """Loads an image; an unusable file is an error that names it.

    Like mmcv's ``LoadImageFromFile``, and with the same required and added keys. Missing, empty and
    truncated files raise an error. By itself OpenCV 4 decodes a truncated JPEG file and fills up
    the rest with grey.

    Args:
        to_float32: Whether to convert the image to float32. Default: False, which keeps uint8.
        color_type: How to decode, see :func:`mmcv.imfrombytes`. Default: 'color', which is BGR.
        imdecode_backend: What decodes, see :func:`mmcv.imfrombytes`. Default: 'cv2'.
        backend_args: Arguments of the file backend. Default: None, the local disk.

    Raises:
        ValueError: If the file is missing, unreadable, empty, truncated or not an image.
    """

    def __init__(
        self,
        *,
        to_float32: bool = False,
        color_type: str = 'color',
        imdecode_backend: str = 'cv2',
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            to_float32=to_float32,
            color_type=color_type,
            imdecode_backend=imdecode_backend,
            backend_args=backend_args,
        )

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds ``img`` of shape (H, W, C), ``img_shape`` and ``ori_shape`` to the results."""
        path = results['img_path']
        image = _load('image', path, self.color_type, self.imdecode_backend, self.backend_args)
        if self.to_float32:
            image = image.astype(np.float32)
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadSegAnnotations(LoadAnnotations):
    """Loads a label map and checks it; every fault is an error that names the file.

    Like mmseg's ``LoadAnnotations``, and with the same required and added keys. It compares the
    label's size with ``ori_shape``, so it may stand before or after a resizing of the image; ahead
    of the image's loading it cannot compare.

    Args:
        num_classes: Number of classes K. Every label has to be below it, or `ignore_index`, after
            the dataset's ``reduce_zero_label`` and ``label_map`` are applied. Default: None, which
            leaves the values unchecked.
        ignore_index: Label that is ignored, 0 to 255. Default: 255.
        reduce_zero_label: What the dataset has to be set to as well. Default: None, which follows
            the dataset.
        imdecode_backend: What decodes, see :func:`mmcv.imfrombytes`. Default: 'pillow'.
        backend_args: Arguments of the file backend. Default: None, the local disk.

    Raises:
        ValueError: If an argument is out of range; at loading, if the file is missing, unreadable,
            empty, truncated or not a picture, if it is not a map of whole numbers 0 to 255 with one
            channel, if its size is not the image's, or if it holds labels outside the classes.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from PIL import Image
        >>> from mmseg_coop.datasets import LoadSegAnnotations
        >>> path = pathlib.Path(tempfile.mkdtemp()) / 'label.png'
        >>> Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8)).save(path)
        >>> load = LoadSegAnnotations(num_classes=3)
        >>> results = load(dict(seg_map_path=str(path), reduce_zero_label=False, seg_fields=[]))
        >>> results['gt_seg_map']
        array([[  0,   1],
               [  2, 255]], dtype=uint8)
    """

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        ignore_index: int = 255,
        reduce_zero_label: bool | None = None,
        imdecode_backend: str = 'pillow',
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        if num_classes is not None and not 1 <= num_classes <= 256:
            raise ValueError(
                f'num_classes is {num_classes}; give 1 to 256, or None to leave labels unchecked'
            )
        if not 0 <= ignore_index <= 255:
            raise ValueError(f'ignore_index is {ignore_index}; give 0 to 255, labels are bytes')
        super().__init__(
            reduce_zero_label=reduce_zero_label,
            imdecode_backend=imdecode_backend,
            backend_args=backend_args,
        )
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        """Adds ``gt_seg_map`` of shape (H, W), uint8, to the results."""
        path = results['seg_map_path']
        label = _load('label', path, 'unchanged', self.imdecode_backend, self.backend_args)
        label = self._as_label_map(label, path)
        self._check_size(label, results)
        label = self._relabel(label, results)
        self._check_values(label, path)
        results['gt_seg_map'] = label
        results['seg_fields'].append('gt_seg_map')

    def _as_label_map(self, label: np.ndarray, path: str) -> np.ndarray:
        """Checks that a decoded picture is a label map and returns it as uint8, shape (H, W)."""
        if label.ndim == 3 and label.shape[2] == 1:
            label = label[..., 0]
        if label.ndim != 2:
            raise ValueError(
                f'label {path} has shape {label.shape}, not (H, W). If its classes are colours, '
                "convert it to class ids; if it is a palette picture, use imdecode_backend='pillow'"
            )
        if label.dtype != np.uint8:
            if label.dtype.kind not in 'biu':
                raise ValueError(
                    f'label {path} holds {label.dtype}, not whole numbers; convert it to class ids'
                )
            if label.min() < 0 or label.max() > 255:
                raise ValueError(
                    f'label {path} holds values from {label.min()} to {label.max()} '
                    f'({label.dtype}); allowed are 0 to 255; if these are instance ids, convert '
                    'them to class ids'
                )
        return label.astype(np.uint8, copy=False)

    def _check_size(self, label: np.ndarray, results: dict[str, Any]) -> None:
        """Checks that label and image are of one size, if the image is loaded."""
        shape = results.get('ori_shape')
        if shape is None or tuple(shape) == label.shape:
            return
        message = (
            f'label {results["seg_map_path"]} is {label.shape[0]}x{label.shape[1]}, but image '
            f'{results.get("img_path")} is {shape[0]}x{shape[1]} (height x width); pair files of '
            'the same size'
        )
        if label.shape == tuple(shape)[::-1]:
            message += (
                ". The sides are swapped: if the image's EXIF tag turns it, load it with "
                "color_type='color_ignore_orientation'"
            )
        raise ValueError(message)

    def _relabel(self, label: np.ndarray, results: dict[str, Any]) -> np.ndarray:
        """Applies the dataset's ``reduce_zero_label``, then its ``label_map``, in one look-up."""
        reduce_zero_label = results['reduce_zero_label']
        if self.reduce_zero_label not in (None, reduce_zero_label):
            raise ValueError(
                f'reduce_zero_label is {self.reduce_zero_label} in {type(self).__name__} but '
                f'{reduce_zero_label} in the dataset; set it in the dataset only'
            )
        label_map = results.get('label_map')
        if not reduce_zero_label and label_map is None:
            return label
        table = np.arange(256, dtype=np.uint8)
        if reduce_zero_label:
            table[1:255] -= 1
            table[0] = 255  # as fixed in mmseg, whatever the ignored label
        if label_map is not None:
            reduced = table.copy()
            for old, new in label_map.items():
                table[reduced == old] = new
        return cv2.LUT(label, table)

    def _check_values(self, label: np.ndarray, path: str) -> None:
        """Checks that every label is a class or ignored."""
        if self.num_classes is None:
            return
        # The usual ignored label, 255, wraps around to 0 and so leaves the maximum at no cost.
        highest = int((label + 1).max()) - 1 if self.ignore_index == 255 else int(label.max())
        if highest < self.num_classes:
            return
        outside = (label >= self.num_classes) & (label != self.ignore_index)
        if not outside.any():
            return
        values, counts = np.unique(label[outside], return_counts=True)
        found = [f'{v} ({n} pixels)' for v, n in zip(values.tolist(), counts.tolist(), strict=True)]
        more = f' and {len(found) - 8} more' if len(found) > 8 else ''
        raise ValueError(
            f'label {path} holds {", ".join(found[:8])}{more} (after reduce_zero_label and '
            f'label_map); allowed are 0 to {self.num_classes - 1} and {self.ignore_index} '
            '(ignored). If the ids start at 1, set reduce_zero_label=True in the dataset; if they '
            'are the original ids of the data set, convert the labels first; else mend num_classes'
        )

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_classes={self.num_classes}, '
            f'ignore_index={self.ignore_index}, reduce_zero_label={self.reduce_zero_label}, '
            f'imdecode_backend={self.imdecode_backend!r}, backend_args={self.backend_args})'
        )
