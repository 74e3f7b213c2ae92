"""What the dataset converters of this folder share.

It imports neither torch nor mmseg, so that the tools start at once.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from mmengine.utils import ProgressBar
from PIL import Image

Task = TypeVar('Task')
Result = TypeVar('Result')

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


def parse_count(text: str) -> int:
    """Reads a number of 1 or more, for argparse."""
    if re.fullmatch(r'[1-9]\d*', text) is None:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of 1 or more')
    return int(text)


def add_run_options(parser: argparse.ArgumentParser, replaced: str) -> None:
    """Adds --jobs and --force, whose help says what is replaced."""
    parser.add_argument(
        '--jobs', type=parse_count, default=1, metavar='N', help='processes that share the work (1)'
    )
    parser.add_argument('--force', action='store_true', help=f'replace {replaced}')


def some(names: set[str]) -> str:
    """Names a few of many files."""
    first = sorted(names)[:5]
    return ', '.join(first) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def voc_palette() -> list[int]:
    """Returns Pascal VOC's 256 colours: bits 0, 3, 6 of an index are red's top bits, and so on."""
    index = np.arange(256)
    channels = [sum((index >> (3 * k + c) & 1) << (7 - k) for k in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).ravel().tolist()


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


def open_picture(path: Path, pixels: bool = True) -> Image.Image:
    """Reads a picture, or its header only.

    Raises:
        ValueError: If it cannot be decoded to its end.
    """
    try:
        picture = Image.open(path)
        if pixels:
            picture.load()
    except Exception as error:  # pillow raises many types, and not all of them name the file
        raise ValueError(
            f'{path} cannot be read ({type(error).__name__}: {error}); restore it, or delete it if '
            'this program wrote it'
        ) from error
    return picture


def read_ids(path: Path) -> np.ndarray:
    """Reads a label picture as ids, shape (H, W).

    Raises:
        ValueError: If it cannot be read, or holds colours.
    """
    picture = open_picture(path)
    if picture.mode not in ('L', 'P'):
        raise ValueError(
            f'{path} has the mode {picture.mode}, not one channel of 8 bits; give label ids, not '
            'pictures in colours'
        )
    return np.array(picture)


def check_values(label: np.ndarray, path: Path, allowed: list[int], wording: str) -> None:
    """Raises a ValueError if a label map holds other values than the allowed ones."""
    counts = np.bincount(label.ravel(), minlength=256)
    counts[allowed] = 0
    if counts.any():
        found = ', '.join(f'{value} ({counts[value]} pixels)' for value in counts.nonzero()[0])
        raise ValueError(f'{path} holds the labels {found}; allowed are {wording}')


def check_present(needed: set[str], present: set[str], folder: Path, kind: str) -> None:
    """Raises a ValueError that names what a folder lacks."""
    if needed - present:
        raise ValueError(f'{folder} lacks the {kind} of {some(needed - present)}; restore it')


def keep(path: Path, check: Callable[[Path], None], force: bool) -> bool:
    """Tells whether a file is there and passes its check.

    Args:
        path: A file that this run would write.
        check: Raises a ValueError if the file is damaged or not what this run would write.
        force: Answer no in that case, so that the file is replaced, instead of raising.

    Raises:
        ValueError: If the check fails, without `force`.
    """
    if not path.exists():
        return False
    try:
        check(path)
    except ValueError as error:
        if force:
            return False
        raise ValueError(f'{error}, or add --force to replace such files') from error
    return True


def ignore_interrupt() -> None:
    """Leaves Ctrl-C, which reaches all processes of a terminal, to the main one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_jobs(function: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> list[Result]:
    """Returns the results of all tasks in their order, and shows a progress bar meanwhile.

    Args:
        function: What to do with a task. With several jobs it must be picklable.
        tasks: The tasks.
        jobs: Number of processes; 1 stays in this one.
    """
    bar = ProgressBar(len(tasks))

    def collect(results: Iterable[Result]) -> list[Result]:
        collected = []
        for result in results:
            collected.append(result)
            bar.update()
        print()
        return collected

    if jobs == 1:
        return collect(map(function, tasks))
    pool = ProcessPoolExecutor(jobs, initializer=ignore_interrupt)
    try:
        return collect(pool.map(function, tasks))
    finally:
        # Those at work finish their files; the rest is left to the next run.
        pool.shutdown(cancel_futures=True)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line where a converter cannot go on."""
    try:
        yield
    except ValueError as error:
        sys.exit(f'\nerror: {error}')
    except BrokenProcessPool:
        sys.exit(
            '\nerror: a process of --jobs was killed, perhaps for want of memory; the same command '
            'goes on from here, with fewer --jobs if it happens again'
        )
    except OSError as error:
        sys.exit(f'\nerror: {error}; check the rights and the free space of that folder')
    except KeyboardInterrupt:
        sys.exit('\ninterrupted; the same command goes on from here')


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
        self.add_pixels(np.bincount(label.ravel(), minlength=256))

    def add_pixels(self, counts: np.ndarray) -> None:
        """Counts one label map by its pixels of each value, shape (256,)."""
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


class Converted(NamedTuple):
    """What became of one label: `pixels` of each value, shape (256,), and whether it is new."""

    split: str
    pixels: np.ndarray
    new: bool


def report(results: Sequence[Converted], splits: Iterable[str], classes: Sequence[str]) -> str:
    """Returns the class table of all splits, and how many labels each of them has."""
    counts = {split: ClassCount(classes) for split in splits}
    for result in results:
        counts[result.split].add_pixels(result.pixels)
    images = ', '.join(f'{count.images} {split}' for split, count in counts.items())
    new = sum(result.new for result in results)
    return (
        f'{format_table(counts)}\nlabels: {images}\n'
        f'{new} were converted now, {len(results) - new} were there and are kept'
    )
