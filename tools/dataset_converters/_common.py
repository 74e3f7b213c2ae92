"""What the dataset converters of this folder share.

It imports neither torch nor mmseg, so that the tools start at once.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

IGNORE = 255
CAMVID_CLASSES = (
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
)
CAMVID_PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)


def parse_size(text: str) -> tuple[int, int]:
    """Reads a size such as ``360x480`` as (height, width) in pixels, for argparse."""
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a size; give height x width in pixels, such as 360x480'
        )
    return int(match[1]), int(match[2])


def full_palette(palette: Sequence[Sequence[int]], ignore: Sequence[int] = (0, 0, 0)) -> list[int]:
    """Fills a palette of class colours up to the 256 entries of a palette image, flattened."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE] = ignore
    return table.ravel().tolist()


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image under a hidden name and renames it, so that no half file bears `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.part')
    options = {'quality': 95} if path.suffix == '.jpg' else {}
    image.save(part, format='JPEG' if path.suffix == '.jpg' else 'PNG', **options)
    os.replace(part, path)


class ClassCount:
    """Pixels of every class, and images in which it occurs, for the table a converter ends with.

    Args:
        classes: Class names, in the order of their ids. The ignored label is counted besides.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.ids = [*range(len(classes)), IGNORE]
        self.images = 0
        self.pixels = np.zeros(256, np.int64)
        self.occurrences = np.zeros(256, np.int64)

    def add(self, label: np.ndarray) -> None:
        """Counts one label map of shape (H, W) with values 0..255."""
        counts = np.bincount(label.ravel(), minlength=256)
        self.images += 1
        self.pixels += counts
        self.occurrences += counts > 0

    def rows(self) -> list[tuple[str, float, int]]:
        """Returns (name, percent of all pixels, images) of each class and of the ignored label."""
        names = [f'{i:3d} {name}' for i, name in enumerate(self.classes)] + [f'{IGNORE} ignored']
        percent = 100 * self.pixels[self.ids] / max(1, self.pixels.sum())
        return list(zip(names, percent.tolist(), self.occurrences[self.ids].tolist(), strict=True))


def format_table(counts: dict[str, ClassCount]) -> str:
    """Lays out the class counts of several splits side by side."""
    lines = [f'{"class":20s}' + ''.join(f'{s + " %px":>12s}{"images":>8s}' for s in counts)]
    for row in zip(*(count.rows() for count in counts.values()), strict=True):
        lines.append(f'{row[0][0]:20s}' + ''.join(f'{px:12.2f}{n:8d}' for _, px, n in row))
    lines.append(f'{"all images":20s}' + ''.join(f'{"":12s}{c.images:8d}' for c in counts.values()))
    return '\n'.join(lines)
