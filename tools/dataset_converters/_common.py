"""What the dataset converters of this folder share.

It imports neither torch nor mmseg, so that the tools start at once.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from mmseg_coop_cli import CoopError, load_tool

Task = TypeVar('Task')
Result = TypeVar('Result')
Size = tuple[int, int]  # height and width

IGNORE = 255
CAMVID_PALETTE = {
    'sky': (128, 128, 128),
    'building': (128, 0, 0),
    'pole': (192, 192, 128),
    'road': (128, 64, 128),
    'sidewalk': (60, 40, 222),
    'tree': (128, 128, 0),
    'sign': (192, 128, 128),
    'fence': (64, 64, 128),
    'car': (64, 0, 128),
    'pedestrian': (64, 64, 0),
    'bicyclist': (0, 128, 192),
}
CAMVID_CLASSES = tuple(CAMVID_PALETTE)
VOC_CLASSES = (
    *('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair'),
    *('cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa'),
    *('train', 'tvmonitor'),
)
NYUV2_CLASSES = (
    *('wall', 'floor', 'cabinet', 'bed', 'chair', 'sofa', 'table', 'door', 'window', 'bookshelf'),
    *('picture', 'counter', 'blinds', 'desk', 'shelves', 'curtain', 'dresser', 'pillow', 'mirror'),
    *('floor mat', 'clothes', 'ceiling', 'books', 'refrigerator', 'television', 'paper', 'towel'),
    *('shower curtain', 'box', 'whiteboard', 'person', 'night stand', 'toilet', 'sink', 'lamp'),
    *('bathtub', 'bag', 'other structure', 'other furniture', 'other prop'),
)
MFNET_CLASSES = (
    *('unlabeled', 'car', 'person', 'bike', 'curve', 'car_stop', 'guardrail', 'color_cone'),
    'bump',
)


def some(names: set[str]) -> str:
    """Names a few of many files."""
    first = sorted(names)[:5]
    return ', '.join(first) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def voc_palette() -> list[int]:
    """Returns Pascal VOC's 256 colours: bits 0, 3, 6 of an index are red's top bits, and so on."""
    index = np.arange(256)
    channels = [sum((index >> (3 * k + c) & 1) << (7 - k) for k in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).ravel().tolist()


def camvid_palette() -> list[int]:
    """Returns CamVid's colours, filled up to the 256 entries of a palette image with black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(CAMVID_PALETTE)] = list(CAMVID_PALETTE.values())
    return table.ravel().tolist()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Gives a hidden name to write to, and renames it, so that no half file bears `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.part')
    yield part
    os.replace(part, path)


def save_image(image: Image.Image | np.ndarray, path: Path, palette: list[int] | None) -> None:
    """Writes an image, in the format of its suffix; a palette turns a map of ids into colours."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if palette is not None:
        image.putpalette(palette)
    with atomic(path) as part:
        if path.suffix == '.jpg':
            image.save(part, format='JPEG', quality=95)
        else:
            image.save(part, format='PNG')


def open_image(path: Path, pixels: bool = True) -> Image.Image:
    """Reads an image, or its header only.

    Raises:
        CoopError: If it cannot be decoded to its end.
    """
    try:
        image = Image.open(path)
        if pixels:
            image.load()
    except Exception as error:  # pillow raises many types, and not all of them name the file
        raise CoopError(
            f'{path} cannot be read ({type(error).__name__}: {error}); restore it, or delete it if '
            'this program wrote it'
        ) from error
    return image


def image_size(path: Path) -> Size:
    """Reads the size of an image from its header."""
    with open_image(path, pixels=False) as image:
        return image.height, image.width


def read_ids(path: Path) -> np.ndarray:
    """Reads a label image as ids, shape (H, W).

    Raises:
        CoopError: If it cannot be read, or holds colours.
    """
    image = open_image(path)
    if image.mode not in ('L', 'P'):
        raise CoopError(
            f'{path} has the mode {image.mode}, not one channel of 8 bits; give label ids, not '
            'images in colours'
        )
    return np.array(image)


def check_size(path: Path, size: Sequence[int], wanted: Size, whose: str, remedy: str) -> None:
    """Raises a CoopError if a file has another size than, say, its image."""
    if tuple(size) != wanted:
        raise CoopError(
            f'{path} is {size[0]}x{size[1]}, but {whose} {wanted[0]}x{wanted[1]} '
            f'(height x width); {remedy}'
        )


def check_values(label: np.ndarray, path: Path, allowed: Sequence[int], wording: str) -> None:
    """Raises a CoopError if a label map holds other values than the allowed ones."""
    counts = count_pixels(label)
    counts[list(allowed)] = 0
    if counts.any():
        found = ', '.join(f'{value} ({counts[value]} pixels)' for value in counts.nonzero()[0])
        raise CoopError(f'{path} holds the labels {found}; allowed are {wording}')


def check_present(needed: set[str], present: set[str], folder: Path, kind: str) -> None:
    """Raises a CoopError that names what a folder lacks."""
    if needed - present:
        raise CoopError(f'{folder} lacks the {kind} of {some(needed - present)}; restore it')


def keep(path: Path, check: Callable[[Path], None], force: bool) -> bool:
    """Tells whether a file is there and passes its check.

    Args:
        path: A file that this run would write.
        check: Raises a CoopError if the file is damaged or not what this run would write.
        force: Answer no in that case, so that the file is replaced, instead of raising.

    Raises:
        CoopError: If the check fails, without `force`.
    """
    if not path.exists():
        return False
    try:
        check(path)
    except CoopError as error:
        if force:
            return False
        raise CoopError(f'{error}, or add --force to replace such files') from error
    return True


def start_worker(tool: Path) -> None:
    """Leaves Ctrl-C, which reaches all processes of a terminal, to the main one.

    Args:
        tool: What the work is taken from; a process that is no fork has yet to import it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    load_tool(tool)


def run_jobs(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    jobs: int = 1,
    interrupted: str = 'the same command goes on from here',
) -> list[Result]:
    """Returns the results of all tasks in their order, and shows a progress bar meanwhile.

    Args:
        function: What to do with a task. With several jobs it must be picklable.
        tasks: The tasks.
        jobs: Number of processes; 1 stays in this one.
        interrupted: What an interrupt tells the user.

    Raises:
        CoopError: If a process was killed.
    """
    from mmengine.utils import ProgressBar

    bar = ProgressBar(len(tasks), file=sys.stdout)

    def collect(results: Iterable[Result]) -> list[Result]:
        collected = []
        for result in results:
            collected.append(result)
            bar.update()
        return collected

    pool = None
    try:
        if jobs == 1:
            return collect(map(function, tasks))
        tool = inspect.getfile(getattr(function, 'func', function))
        pool = ProcessPoolExecutor(jobs, initializer=start_worker, initargs=(Path(tool),))
        return collect(pool.map(function, tasks))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'interrupted; {interrupted}') from None
    except BrokenProcessPool as error:
        raise CoopError(
            'a process of --jobs was killed, perhaps for want of memory; the same command goes on '
            'from here, with fewer --jobs if it happens again'
        ) from error
    finally:
        print()  # behind the bar
        if pool is not None:  # those at work finish their files; the rest is left to the next run
            pool.shutdown(cancel_futures=True)


class Converted(NamedTuple):
    """What became of one label: `pixels` of each value, shape (256,), and whether it is new."""

    split: str
    pixels: np.ndarray
    new: bool = True


def count_pixels(label: np.ndarray) -> np.ndarray:
    """Counts the pixels of each value 0..255 in a label map, shape (256,)."""
    return np.bincount(label.ravel(), minlength=256)


def by_split(results: Iterable[Converted], splits: Iterable[str]) -> dict[str, np.ndarray]:
    """Gathers the pixels of each value in all images of a split, shape (images, 256)."""
    results = list(results)
    return {
        split: np.array([r.pixels for r in results if r.split == split]).reshape(-1, 256)
        for split in splits
    }


def format_table(counts: dict[str, np.ndarray], classes: Sequence[str]) -> str:
    """Lays out what percentage of a split's pixels a class has, and in how many images it occurs.

    Args:
        counts: What `by_split` returns.
        classes: Class names, in the order of their ids. The ignored label is counted besides.
    """
    lines = [f'{"class":20s}' + ''.join(f'{s + " %px":>12s}{"images":>8s}' for s in counts)]
    for value, name in [*enumerate(classes), (IGNORE, 'ignored')]:
        line = f'{f"{value:3d} {name}":20s}'
        for pixels in counts.values():
            share, images = pixels[:, value].sum() / max(1, pixels.sum()), pixels[:, value] > 0
            line += f'{100 * share:12.2f}{images.sum():8d}'
        lines.append(line)
    lines.append(f'{"all images":20s}' + ''.join(f'{len(c):20d}' for c in counts.values()))
    return '\n'.join(lines)


def report(results: Sequence[Converted], splits: Iterable[str], classes: Sequence[str]) -> str:
    """Returns the class table of all splits, and how many labels each of them has."""
    counts = by_split(results, splits)
    labels = ', '.join(f'{len(pixels)} {split}' for split, pixels in counts.items())
    new = sum(result.new for result in results)
    return (
        f'{format_table(counts, classes)}\nlabels: {labels}\n'
        f'{new} were converted now, {len(results) - new} were there and are kept'
    )
