"""Draws the train ids of Cityscapes: *_gtFine_labelTrainIds.png, as CityscapesDataset reads them.

They are drawn from *_gtFine_polygons.json by cityscapesscripts, Cityscapes' own tools (pip install
cityscapesscripts), and lie beside them. CITYSCAPES_DIR holds leftImg8bit and gtFine, each with
train, val and test. The polygons of test are public only as far as they mark ignored regions.

An interrupted run is taken up by the same command: finished files are checked and kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from _common import (
    IGNORE,
    Converted,
    Size,
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
)
from PIL import Image

from mmseg_coop_cli import CoopError, Parser, program

EXPECTED = {'train': 2975, 'val': 500, 'test': 1525}
IMAGE = '_leftImg8bit.png'
POLYGONS = '_gtFine_polygons.json'
TRAIN_IDS = '_gtFine_labelTrainIds.png'
NUM_CLASSES = 19


class Frame(NamedTuple):
    """A frame's image, its polygons and the file they are drawn into."""

    split: str
    image: Path
    polygons: Path
    out: Path


class Scripts(NamedTuple):
    """What is used of cityscapesscripts."""

    annotation: Any
    draw: Any
    labels: dict[str, Any]
    classes: list[str]


def load_scripts() -> Scripts:
    """Imports cityscapesscripts, which need not be installed for anything else."""
    try:
        from cityscapesscripts.helpers.annotation import Annotation
        from cityscapesscripts.helpers.labels import name2label, trainId2label
        from cityscapesscripts.preparation.json2labelImg import createLabelImage
    except ImportError as error:
        raise CoopError(
            f'cityscapesscripts cannot be imported ({error}); run: pip install cityscapesscripts'
        ) from error
    classes = [trainId2label[i].name for i in range(NUM_CLASSES)]
    return Scripts(Annotation, createLabelImage, name2label, classes)


def list_frames(root: Path) -> list[Frame]:
    """Pairs images with polygons in all splits.

    Raises:
        CoopError: If one file of a pair is missing.
    """
    frames = []
    for split in EXPECTED:
        folders = {IMAGE: root / 'leftImg8bit' / split, POLYGONS: root / 'gtFine' / split}
        images, polygons = (
            {
                path.relative_to(folder).as_posix().removesuffix(suffix)
                for path in folder.glob(f'*/*{suffix}')
            }
            for suffix, folder in folders.items()
        )
        check_present(images, polygons, folders[POLYGONS], f'*{POLYGONS}')
        check_present(polygons, images, folders[IMAGE], f'*{IMAGE}')
        frames += [
            Frame(
                split,
                folders[IMAGE] / f'{name}{IMAGE}',
                folders[POLYGONS] / f'{name}{POLYGONS}',
                folders[POLYGONS] / f'{name}{TRAIN_IDS}',
            )
            for name in sorted(images)
        ]
    if not frames:
        raise CoopError(
            f'{root} holds no leftImg8bit/*/*/*{IMAGE} with gtFine/*/*/*{POLYGONS}; give the '
            'folder into which Cityscapes was unpacked'
        )
    return frames


def draw(path: Path, size: Size) -> Image.Image:
    """Draws a file of polygons as train ids; `size` is its image's."""
    scripts = load_scripts()
    try:
        annotation = scripts.annotation()
        annotation.fromJsonText(path.read_text(encoding='utf-8'))
        labels = {obj.label for obj in annotation.objects if not obj.deleted}
        # cityscapesscripts would end the program at a label it does not know.
        unknown = {label for label in labels if label.removesuffix('group') not in scripts.labels}
        drawn = None if unknown else scripts.draw(annotation, 'trainIds')
    except Exception as error:  # a wrong value shows up as any of many types, without a path
        raise CoopError(
            f'{path} cannot be drawn ({type(error).__name__}: {error}); restore it'
        ) from error
    if drawn is None:
        raise CoopError(
            f'{path} holds the labels {", ".join(sorted(unknown))}, which are none of Cityscapes; '
            'restore it'
        )
    check_size(path, (drawn.height, drawn.width), size, 'its image is', 'restore them')
    return drawn


def convert(frame: Frame, force: bool) -> Converted:
    """Writes a frame's train ids, or checks those that are there."""
    size = image_size(frame.image)

    def check(path: Path) -> None:
        label = read_ids(path)
        check_size(path, label.shape, size, 'its image is', 'delete it')
        wording = f'0 to {NUM_CLASSES - 1} and {IGNORE}; delete it'
        check_values(label, path, [*range(NUM_CLASSES), IGNORE], wording)

    kept = keep(frame.out, check, force)
    if not kept:
        save_image(draw(frame.polygons, size), frame.out, None)
    return Converted(frame.split, count_pixels(read_ids(frame.out)), not kept)


def compare_counts(frames: list[Frame]) -> str:
    """Says which splits have another number of frames than Cityscapes, or nothing."""
    found = {split: sum(frame.split == split for frame in frames) for split in EXPECTED}
    return ', '.join(
        f'{split} has {found[split]} frames instead of {expected}'
        for split, expected in EXPECTED.items()
        if found[split] != expected
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Draws all train ids."""
    parser = Parser(__doc__)
    parser.add_argument(
        'root', type=Path, metavar='CITYSCAPES_DIR', help='the folder of leftImg8bit and gtFine'
    )
    counts = ', '.join(f'{count} {split}' for split, count in EXPECTED.items())
    parser.add_argument(
        '--strict',
        action='store_true',
        help=f'refuse to start, instead of warning, if there are not {counts} frames',
    )
    parser.share('--jobs')
    parser.share('--force', help='replace train ids that are there, but damaged')
    args = parser.parse_args(argv)
    classes = load_scripts().classes
    frames = list_frames(args.root)
    deviation = compare_counts(frames)
    if deviation and args.strict:
        raise CoopError(f'{deviation}; restore the release, or leave out --strict')
    results = run_jobs(partial(convert, force=args.force), frames, args.jobs)
    print(report(results, EXPECTED, classes))
    if deviation:
        print(f'warning: {deviation}; is the release complete?', file=sys.stderr)


if __name__ == '__main__':
    program(main)
