"""Loading of a second image of the same scene, such as its depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from typing_extensions import override

from ...errors import DataError, InputError
from .reading import Fault, check_backend, decode, naming, read


@TRANSFORMS.register_module()
class LoadSecondImage(BaseTransform):
    """Adds a second image of the scene, such as depth or thermal, as further channels.

    Its file follows from the name of the first: the last folder ``folder[0]`` on the way there
    becomes ``folder[1]``, and the ending ``suffix[0]`` becomes ``suffix[1]``. The channels of both
    lie behind each other, ``(H, W, 3 + channels)``, so that whatever turns, crops or resizes the
    image does so to both. What changes colours (``PhotoMetricDistortion``) takes three channels:
    put it ahead of this transform, and what resizes behind.

    A file that cannot be used, or that has another size or kind than it should, is an error that
    names both files. Values stay as they are stored: 8 bits beside 8 bits are uint8, anything else
    makes both float32, as depth in millimetres does. Unknown depth, often stored as 0, stays 0, and
    is interpolated like any other value.

    An image that comes as an array has no file beside it; it has to hold all channels already.

    Args:
        folder: Folder of the images, and folder of the second images in its place. A folder of
            several levels is written with slashes.
        suffix: Ending of the images' names, and what stands in its place. Defaults to
            ``('.jpg', '.png')``.
        channels: Channels of the second image. Defaults to 1.
        dtype: Kind of its numbers, as they are stored: ``'uint8'`` (the default), ``'uint16'`` or
            ``'float32'``.
        imdecode_backend: What decodes, see :func:`mmcv.imfrombytes`. Defaults to ``'cv2'``.
        backend_args: Arguments of the file backend. Defaults to None, the local disk.

    Raises:
        ValueError: ``folder`` or ``suffix`` is no pair of texts, or the backend is unknown; at
            loading, if the image has been resized already.
        DataError: At loading, if the image does not lie where the second one can be found from, or
            the second one is missing, damaged, or of another size or kind.
        InputError: At loading, if the image is an array without the channels of the second.

    Example:
        >>> load = LoadSecondImage(folder=('RGB', 'Depth'), dtype='uint16')
        >>> load.find('data/nyuv2/RGB/1.jpg')
        'data/nyuv2/Depth/1.png'
    """

    def __init__(
        self,
        *,
        folder: Sequence[str],
        suffix: Sequence[str] = ('.jpg', '.png'),
        channels: int = 1,
        dtype: str = 'uint8',
        imdecode_backend: str = 'cv2',
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        for name, pair, example in (
            ('folder', folder, "('RGB', 'Depth')"),
            ('suffix', suffix, "('.jpg', '.png')"),
        ):
            if isinstance(pair, str) or [type(word) for word in pair] != [str, str]:
                raise ValueError(
                    f'{name} is {pair!r}; give that of the images and that of the second images, '
                    f'as in {example}.'
                )
        if dtype not in ('uint8', 'uint16', 'float32'):
            raise ValueError(f"dtype is {dtype!r}; give 'uint8', 'uint16' or 'float32'.")
        check_backend(imdecode_backend)
        self.folder = tuple(name.strip('/') for name in folder)
        self.suffix = tuple(suffix)
        self.channels = channels
        self.dtype = dtype
        self.imdecode_backend = imdecode_backend
        self.backend_args = backend_args

    def find(self, path: str) -> str:
        """Find the file of a second image.

        Args:
            path: File of the image.

        Returns:
            File of the second image, which need not exist.

        Raises:
            DataError: The image is in another folder or ends otherwise.
        """
        (old, new), (ending, other) = self.folder, self.suffix
        posix = '/' + path.replace('\\', '/')
        before, found, name = posix.rpartition(f'/{old}/')
        if not found or not name.endswith(ending):
            raise DataError(
                f'image {path} has no second image: it is not named {old}/…{ending}, to find '
                f'{new}/…{other} by; put it into such a folder, or change folder and suffix of '
                'LoadSecondImage',
                path=path,
            )
        return f'{before}/{new}/{name.removesuffix(ending)}{other}'[1:]

    @override
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image, path = results['img'], results.get('img_path')
        image = image.reshape(*image.shape[:2], -1)
        if path is None:
            if image.shape[2] <= 3:
                raise InputError(
                    f'an array of shape {image.shape} names no file, beside which LoadSecondImage '
                    f'would find the second image; give a file, or an array of all channels, '
                    f'(H, W, 3 + {self.channels}).'
                )
            return results
        if image.shape[:2] != tuple(results['ori_shape']):
            raise ValueError(
                f'LoadSecondImage gets image {path} at another size than its file; put it ahead of '
                'the transforms that resize or crop.'
            )
        second = self._load(path, image.shape)
        if not image.dtype == second.dtype == np.uint8:
            image, second = image.astype(np.float32), second.astype(np.float32)
        results['img'] = np.concatenate([image, second], axis=2)
        return results

    def _load(self, path: str, shape: Sequence[int]) -> np.ndarray:
        """The second image, ``(H, W, C)``, of the image of a file and a shape."""
        file = self.find(path)
        with naming(f'second image of {path},', file):
            content = read(file, self.backend_args, 'folder and suffix of LoadSecondImage')
            second = decode(content, 'unchanged', self.imdecode_backend)
            second = second.reshape(*second.shape[:2], -1)
            if second.shape[:2] != tuple(shape[:2]):
                raise Fault(
                    f'is {second.shape[0]}x{second.shape[1]}, but the image is '
                    f'{shape[0]}x{shape[1]} (height x width); pair files of the same size'
                )
            if second.shape[2] != self.channels or second.dtype != np.dtype(self.dtype):
                raise Fault(
                    f'has {second.shape[2]} channels of {second.dtype}, not {self.channels} of '
                    f'{self.dtype}; restore it, or change channels and dtype of LoadSecondImage'
                )
        return second

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(folder={self.folder}, suffix={self.suffix}, '
            f'channels={self.channels}, dtype={self.dtype!r}, '
            f'imdecode_backend={self.imdecode_backend!r}, backend_args={self.backend_args})'
        )
