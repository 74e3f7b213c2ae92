"""Loading of images and label maps that names the file at fault and what is wrong with it.

A broken file or a label outside the classes otherwise surfaces far from its cause: as an
``IndexError`` deep in the cross entropy, as a device-side assertion on a GPU, or not at all (OpenCV
4 fills up a truncated JPEG file with grey). Here it is a :class:`DataError`.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from mmcv.image.io import imread_flags
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS
from PIL import Image
from typing_extensions import override

from ...errors import first_few
from .reading import Fault, check_backend, decode, naming, read

#: How to decode without turning the image as its EXIF tag says.
_AS_STORED = {
    'color': 'color_ignore_orientation',
    'grayscale': 'grayscale_ignore_orientation',
}


@TRANSFORMS.register_module()
class LoadSegImage(LoadImageFromFile):
    """Loads an image as it is stored; an unusable file is an error that names it.

    Like mmcv's ``LoadImageFromFile``, and with the same required and added keys, but for two
    things. An EXIF orientation is not applied: no label has one, so that image and label would lie
    differently. And missing, empty and truncated files raise an error; by itself OpenCV decodes a
    truncated JPEG file and fills up the rest with grey. Damage inside a JPEG file that keeps its
    end marker is not found: the format has no checksums.

    Args:
        to_float32: Whether to convert the image to float32. Default: False, which keeps uint8.
        color_type: How to decode, see :func:`mmcv.imfrombytes`. Default: 'color', which is BGR.
        imdecode_backend: What decodes, see :func:`mmcv.imfrombytes`. Default: 'cv2'.
        backend_args: Arguments of the file backend. Default: None, the local disk.

    Raises:
        ValueError: If `color_type` or `imdecode_backend` is unknown.
        DataError: At loading, if the file is missing, unreadable, empty, truncated, damaged (PNG)
            or not an image, or a TIFF file with an orientation, which its decoders always apply.
    """

    def __init__(
        self,
        *,
        to_float32: bool = False,
        color_type: str = 'color',
        imdecode_backend: str = 'cv2',
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        if color_type not in imread_flags:
            raise ValueError(f'color_type is {color_type!r}; give one of {list(imread_flags)}')
        check_backend(imdecode_backend)
        super().__init__(
            to_float32=to_float32,
            color_type=color_type,
            imdecode_backend=imdecode_backend,
            backend_args=backend_args,
        )

    @override
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        flag = self.color_type
        if self.imdecode_backend != 'turbojpeg':  # which never turns, and does not know these flags
            flag = _AS_STORED.get(flag, flag)
        with naming('image', results['img_path']):
            content = read(results['img_path'], self.backend_args)
            image = decode(content, flag, self.imdecode_backend)
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
        ValueError: If an argument is out of range; at loading, if the settings of the dataset do
            not fit.
        DataError: At loading, if the file is missing, unreadable, empty, truncated, damaged or not
            an image, if it is not a map of whole numbers 0 to 255 with one channel, if decoding
            would change its ids, if its size is not the image's, or if it holds labels outside the
            classes.

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
        check_backend(imdecode_backend)
        super().__init__(
            reduce_zero_label=reduce_zero_label,
            imdecode_backend=imdecode_backend,
            backend_args=backend_args,
        )
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    @override
    def _load_seg_map(self, results: dict[str, Any]) -> None:
        with naming('label', results['seg_map_path']):
            content = read(results['seg_map_path'], self.backend_args)
            self._check_encoding(content)
            label = decode(content, 'unchanged', self.imdecode_backend)
            label = self._as_label_map(label)
            self._check_size(label, results)
            label = self._relabel(label, results)
            self._check_values(label)
        results['gt_seg_map'] = label
        results['seg_fields'].append('gt_seg_map')

    def _check_encoding(self, content: bytes) -> None:
        """Checks that decoding leaves the ids of a label as they are."""
        try:
            with Image.open(io.BytesIO(content)) as file:
                kind, mode, tiles = file.format, file.mode, file.tile
        except (OSError, Image.DecompressionBombError):
            return  # whether it is an image is for the backend to say
        codec, found = (tiles[0][0], tiles[0][3]) if tiles else ('', '')
        arguments = found if isinstance(found, tuple) else (found,)
        if kind in ('JPEG', 'MPO'):
            fault = 'is a JPEG file, whose compression changes ids; make it again as PNG'
        elif self.imdecode_backend == 'cv2' and mode in ('1', 'P'):
            fault = (
                f'is a {"1-bit" if mode == "1" else "palette"} image, which OpenCV turns into '
                "colours; use imdecode_backend='pillow' to read its ids"
            )
        elif (mode == 'L' and arguments[:1] in (('L;2',), ('L;4',))) or (
            codec in ('ppm', 'ppm_plain') and arguments[1] not in (255, 65535)
        ):
            fault = (
                'has fewer than 256 levels of grey, which decoding spreads over 0 to 255; save its '
                'ids with 8 bits, or with a palette'
            )
        else:
            return
        raise Fault(fault)

    def _as_label_map(self, label: np.ndarray) -> np.ndarray:
        """Checks that a decoded image is a label map and returns it as uint8, shape (H, W)."""
        if label.ndim == 3 and label.shape[2] == 1:
            label = label[..., 0]
        if label.ndim != 2:
            raise Fault(
                f'has shape {label.shape}, not (H, W); if its classes are colours, convert it to '
                'class ids'
            )
        if label.dtype != np.uint8:
            if label.dtype.kind not in 'biu':
                raise Fault(f'holds {label.dtype}, not whole numbers; convert it to class ids')
            if label.min() < 0 or label.max() > 255:
                raise Fault(
                    f'holds values from {label.min()} to {label.max()} ({label.dtype}); allowed '
                    'are 0 to 255; if these are instance ids, convert them to class ids'
                )
        return label.astype(np.uint8, copy=False)

    def _check_size(self, label: np.ndarray, results: dict[str, Any]) -> None:
        """Checks that label and image are of one size, if the image is loaded."""
        shape = results.get('ori_shape')
        if shape is None or tuple(shape) == label.shape:
            return
        message = (
            f'is {label.shape[0]}x{label.shape[1]}, but image {results.get("img_path")} is '
            f'{shape[0]}x{shape[1]} (height x width); pair files of the same size'
        )
        if label.shape == tuple(shape)[::-1]:
            message += (
                '. The sides are swapped: images are loaded as stored, whatever their EXIF tag '
                'says; if the label was drawn on the image as viewers turn it, save the image so '
                '(PIL.ImageOps.exif_transpose)'
            )
        raise Fault(message)

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
            self._check_label_map(label_map)
            reduced = table.copy()
            for old, new in label_map.items():
                table[reduced == old] = new
        return cv2.LUT(label, table)

    def _check_label_map(self, label_map: dict[int, int]) -> None:
        """Checks that a dataset's ``label_map`` leads to classes; no file is to blame for it."""
        highest = 255 if self.num_classes is None else self.num_classes - 1
        outside = {
            old: new
            for old, new in label_map.items()
            if not 0 <= new <= highest and new != self.ignore_index
        }
        if outside:
            raise ValueError(
                f'label_map of the dataset makes {outside} (old: new); new labels can be 0 to '
                f'{highest} and {self.ignore_index} (ignored)'
            )

    def _check_values(self, label: np.ndarray) -> None:
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
        raise Fault(
            f'holds {first_few(found, 8)} (after reduce_zero_label and label_map); allowed are 0 '
            f'to {self.num_classes - 1} and {self.ignore_index} (ignored). If the ids start at 1, '
            'set reduce_zero_label=True in the dataset; if they are the original ids of the '
            'dataset, convert the labels first; else correct num_classes'
        )

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_classes={self.num_classes}, '
            f'ignore_index={self.ignore_index}, reduce_zero_label={self.reduce_zero_label}, '
            f'imdecode_backend={self.imdecode_backend!r}, backend_args={self.backend_args})'
        )
