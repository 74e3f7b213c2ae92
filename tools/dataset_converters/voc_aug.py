"""Adds the labels of SBD to Pascal VOC 2012: the "augmented" training set of 10,582 images.

Pascal VOC 2012 labels 1,464 images for training. The Semantic Boundaries Dataset (SBD, Hariharan et
al., ICCV 2011) labels 11,355 of VOC's images, in its folder cls as one .mat file each. Written are

  SegmentationClassAug/*.png           labels of SBD, and VOC's own of its train and val images
  ImageSets/Segmentation/aug.txt       SBD's train and val without VOC's train and val: 9,118 names
  ImageSets/Segmentation/trainaug.txt  the same and VOC's train: 10,582 names

as PascalVOCDataset reads them. SBD has no borders; VOC marks them with 255. The lists come last, so
that they only name labels that are there.

An interrupted run is taken up by the same command: finished files are compared with their source
and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _common import (
    IGNORE,
    VOC_CLASSES,
    Converted,
    atomic,
    check_present,
    check_size,
    check_values,
    count_pixels,
    image_size,
    keep,
    read_ids,
    report,
    run_jobs,
    save_image,
    voc_palette,
)

from mmseg_coop_cli import CoopError, Parser, at_least, program

EXPECTED = 10582
VOC_PLACES = ('', 'VOC2012', 'VOCdevkit/VOC2012')
SBD_PLACES = ('', 'dataset', 'benchmark_RELEASE/dataset')


class Label(NamedTuple):
    """A label's source, its image, and the file it goes into."""

    split: str
    source: Path
    image: Path
    out: Path


class Lists(NamedTuple):
    """Names of VOC's own lists, and of what SBD adds to the training list."""

    train: set[str]
    val: set[str]
    aug: set[str]


def find_folder(given: Path, places: tuple[str, ...], marker: str, wanted: str) -> Path:
    """Returns the folder with `marker` in it, at or below the given one."""
    for place in places:
        if (given / place / marker).is_dir():
            return given / place
    raise CoopError(f'{given} has no folder {marker}; give {wanted}')


def read_names(path: Path) -> set[str]:
    """Reads a list of one name a line."""
    if not path.is_file():
        raise CoopError(f'the list {path} is missing; restore it')
    return set(path.read_text().split())


def derive_lists(voc: Path, sbd: Path) -> Lists:
    """Derives the lists, and checks that SBD is complete."""
    folder = voc / 'ImageSets' / 'Segmentation'
    train, val = read_names(folder / 'train.txt'), read_names(folder / 'val.txt')
    added = read_names(sbd / 'train.txt') | read_names(sbd / 'val.txt')
    check_present(added, stems(sbd / 'cls', '.mat'), sbd / 'cls', '.mat file')
    return Lists(train - val, val, added - train - val)


def stems(folder: Path, suffix: str) -> set[str]:
    """Returns the names of a folder's files without their suffix."""
    return {path.stem for path in folder.glob(f'*{suffix}')}


def list_labels(voc: Path, sbd: Path, out: Path, lists: Lists) -> list[Label]:
    """Pairs labels with images, in the order of their names.

    Raises:
        CoopError: If VOC lacks a label or an image.
    """
    images, labels = voc / 'JPEGImages', voc / 'SegmentationClass'
    check_present(set().union(*lists), stems(images, '.jpg'), images, 'image')
    check_present(lists.train | lists.val, stems(labels, '.png'), labels, 'label')
    return [
        Label(
            split,
            sbd / 'cls' / f'{name}.mat' if split == 'aug' else labels / f'{name}.png',
            images / f'{name}.jpg',
            out / f'{name}.png',
        )
        for split, names in lists._asdict().items()
        for name in sorted(names)
    ]


def read_mat(path: Path) -> np.ndarray:
    """Reads a label of SBD, shape (H, W)."""
    from scipy.io import loadmat  # takes longer to import than all else

    try:
        label = loadmat(path, variable_names=['GTcls'])['GTcls']['Segmentation'][0, 0]
    except Exception as error:  # scipy raises many types, and not all of them name the file
        raise CoopError(
            f'{path} cannot be read as GTcls.Segmentation ({type(error).__name__}: {error}); '
            'restore it'
        ) from error
    if label.ndim != 2 or label.dtype != np.uint8:
        raise CoopError(
            f'{path} holds an array of shape {label.shape} and type {label.dtype}, not a map of '
            'uint8 labels; restore it'
        )
    return label


def convert(task: Label, force: bool) -> Converted:
    """Writes a label, or compares the one that is there."""
    classes = list(range(len(VOC_CLASSES)))
    if task.split == 'aug':
        label, allowed, wording = read_mat(task.source), classes, f'0 to {classes[-1]}'
    else:
        label, allowed = read_ids(task.source), [*classes, IGNORE]
        wording = f'0 to {classes[-1]} and {IGNORE}'
    check_values(label, task.source, allowed, f'{wording}; restore the file')
    check_size(task.source, label.shape, image_size(task.image), f'{task.image} is', 'restore them')

    def compare(path: Path) -> None:
        if not np.array_equal(read_ids(path), label):
            raise CoopError(f'{path} differs from {task.source}; delete it')

    kept = keep(task.out, compare, force)
    if not kept:
        save_image(label, task.out, voc_palette())
    return Converted(task.split, count_pixels(label), not kept)


def write_list(path: Path, names: set[str]) -> None:
    """Writes a list, unless it is there."""
    if not path.exists() or read_names(path) != names:
        with atomic(path) as part:
            part.write_text(''.join(f'{name}\n' for name in sorted(names)))


def compare_list(path: Path, names: set[str]) -> None:
    """Raises a CoopError if a list that is there holds other names."""
    there = read_names(path)
    if there != names:
        raise CoopError(
            f'{path} lacks {len(names - there)} names of this run and has {len(there - names)} '
            'others; delete it'
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Adds SBD's labels to VOC."""
    parser = Parser(__doc__)
    parser.add_argument(
        'voc', type=Path, metavar='VOCDEVKIT_VOC2012_DIR', help='the folder VOCdevkit/VOC2012'
    )
    parser.add_argument(
        'sbd', type=Path, metavar='SBD_DIR', help='the folder benchmark_RELEASE/dataset of SBD'
    )
    parser.share(
        '--out', type=Path, metavar='DIR', help='output folder; default: VOCDEVKIT_VOC2012_DIR'
    )
    parser.add_argument(
        '--expect',
        type=at_least(1),
        default=EXPECTED,
        metavar='N',
        help=f'how many names trainaug.txt must get; default: {EXPECTED}',
    )
    parser.share('--jobs')
    parser.share('--force', help='replace labels and lists that are damaged or different')
    args = parser.parse_args(argv)
    marker, wanted = 'ImageSets/Segmentation', 'the folder VOC2012 of VOCdevkit'
    voc = find_folder(args.voc, VOC_PLACES, marker, wanted)
    wanted = 'the folder dataset of SBD, which holds cls and its lists'
    sbd = find_folder(args.sbd, SBD_PLACES, 'cls', wanted)
    out = args.out or voc
    lists = derive_lists(voc, sbd)
    trainaug = lists.train | lists.aug
    if len(trainaug) != args.expect:
        raise CoopError(
            f'the training list gets {len(trainaug)} names ({len(lists.train)} of VOC, '
            f'{len(lists.aug)} of SBD) instead of {args.expect}; restore the lists train.txt '
            f'and val.txt of both, or accept the number with --expect {len(trainaug)}'
        )
    tasks = list_labels(voc, sbd, out / 'SegmentationClassAug', lists)
    folder = out / 'ImageSets' / 'Segmentation'
    written = {folder / 'aug.txt': lists.aug, folder / 'trainaug.txt': trainaug}
    for path, names in written.items():
        keep(path, partial(compare_list, names=names), args.force)
    results = run_jobs(partial(convert, force=args.force), tasks, args.jobs)
    for path, names in written.items():
        write_list(path, names)
    print(report(results, Lists._fields, VOC_CLASSES))
    print(f'{out} is complete')
    print(', '.join(f'{path.name}: {len(names)} names' for path, names in written.items()))


if __name__ == '__main__':
    program(main)
