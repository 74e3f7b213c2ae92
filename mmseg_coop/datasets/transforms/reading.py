"""Reading of image files, which says what is wrong with one that cannot be used."""

from __future__ import annotations

import io
import os.path as osp
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mmcv
import numpy as np
from mmcv.image.io import supported_backends
from mmengine import fileio
from PIL import Image, UnidentifiedImageError

from ...errors import DataError

_JPEG_START, _JPEG_END, _JPEG_SCAN = b'\xff\xd8', b'\xff\xd9', b'\xff\xda'
_PNG_START, _PNG_END = b'\x89PNG\r\n\x1a\n', b'IEND'
_PNG_CHUNKS = (b'IHDR', b'PLTE', b'IDAT', _PNG_END)  # those that the image is made of
_TIFF_STARTS = (b'II*\0', b'MM\0*')
_ORIENTATION = 0x0112  # EXIF tag; 1, or none, means as stored


class Fault(Exception):
    """What is wrong with a file; :func:`naming` says which."""


@contextmanager
def naming(kind: str, path: str) -> Iterator[None]:
    """Turn a :class:`Fault` into a DataError about a file, such as ``('image', 'a.png')``."""
    try:
        yield
    except Fault as fault:
        raise DataError(f'{kind} {path} {fault}', path=path) from fault.__cause__


def _truncated(content: bytes) -> Fault:
    return Fault(
        f'is truncated: its {len(content)} bytes end before the image does; restore the file'
    )


def _check_png(content: bytes) -> None:
    """Checks that a PNG file is whole; Pillow does not look at every checksum."""
    if not content.startswith(_PNG_START):
        return
    position = len(_PNG_START)
    while position + 12 <= len(content):  # a chunk is its length, its name, its data, its checksum
        end = position + 12 + int.from_bytes(content[position : position + 4], 'big')
        name = content[position + 4 : position + 8]
        checksum = int.from_bytes(content[end - 4 : end], 'big')
        if end > len(content):
            break
        if name in _PNG_CHUNKS and zlib.crc32(content[position + 4 : end - 4]) != checksum:
            raise Fault(
                f'is damaged: the checksum of the bytes from {position} to {end} is wrong; restore '
                'the file'
            )
        if name == _PNG_END:
            return
        position = end
    raise _truncated(content)


def _check_jpeg(content: bytes) -> None:
    """Checks that a JPEG file ends as it should: it has no checksums."""
    if not content.startswith(_JPEG_START) or content.endswith(_JPEG_END):
        return
    # Other bytes may follow the end marker, and an embedded thumbnail has an end marker too: walk
    # over the header's segments, each a marker and a length, and search behind it.
    position = 2
    while (
        content[position : position + 1] == b'\xff'
        and content[position : position + 2] != _JPEG_SCAN
    ):
        position += 2 + int.from_bytes(content[position + 2 : position + 4], 'big')
    if content.find(_JPEG_END, position) == -1:
        raise _truncated(content)


def read(
    path: str,
    backend_args: dict[str, Any] | None,
    named_by: str = 'data_root, data_prefix, ann_file and the suffixes of the dataset',
) -> bytes:
    """Reads a file, and checks that it is whole, as far as its format tells."""
    if osp.exists(path) and not osp.isfile(path):  # reading a pipe would wait forever
        raise Fault('is not a file; put the file there')
    try:
        content = fileio.get(path, backend_args=backend_args)
    except MemoryError:  # no fault of the file
        raise
    except Exception as error:
        raise Fault(
            f'cannot be read ({type(error).__name__}: {error}); check {named_by}'
        ) from error
    if not content:
        raise Fault('is empty (0 bytes); restore the file')
    _check_png(content)
    _check_jpeg(content)
    return content


def decode(content: bytes, flag: str, backend: str) -> np.ndarray:
    """Decodes an image to (H, W) or (H, W, C)."""
    if content.startswith(_TIFF_STARTS) and backend in ('cv2', 'pillow'):
        orientation = exif_orientation(io.BytesIO(content))
        if orientation != 1:  # whatever the flag says, these turn it
            raise Fault(
                f'is a TIFF file whose orientation tag is {orientation}, by which {backend} turns '
                'it; save it as its pixels lie, without the tag'
            )
    image, reason, cause = None, '', None
    try:
        image = mmcv.imfrombytes(content, flag=flag, backend=backend)
    except MemoryError:  # no fault of the file
        raise
    except Exception as error:
        # Pillow's own text is about the buffer it reads from.
        text = '' if isinstance(error, UnidentifiedImageError) else f': {error}'
        reason, cause = f' ({type(error).__name__}{text})', error
    if image is None:  # what OpenCV returns instead of raising an error
        raise Fault(
            f'cannot be decoded by {backend}{reason}; restore the file, or choose another '
            'imdecode_backend if its format needs one'
        ) from cause
    return image


def exif_orientation(file: str | io.BytesIO) -> int:
    """EXIF orientation of an image file, 1 to 8; 1, as stored, if it has none or is no image."""
    try:
        with Image.open(file) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 1


def check_backend(backend: str) -> None:
    """Raise a ValueError unless mmcv decodes with the backend."""
    if backend not in supported_backends:
        raise ValueError(f'imdecode_backend is {backend!r}; give one of {supported_backends}')
