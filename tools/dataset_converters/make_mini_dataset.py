"""Draws a miniature data set in the folder layout of Pascal VOC 2012, Cityscapes or CamVid.

It stands in for the real one where that is missing, in tests or in a first run. The scenes take
some learning, and mmsegmentation's own dataset classes read them. The same seed gives the same
bytes on the same machine, as long as the versions of numpy, opencv and pillow are the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
from _common import (
    CAMVID_PALETTE,
    ClassCount,
    format_table,
    full_palette,
    parse_size,
    save_image,
    voc_palette,
)
from _mini_scenes import CLASSES, LAYOUTS, DoesNotFitError, draw_scene
from mmengine.utils import ProgressBar
from PIL import Image

MIN_SIDE = 64
EPILOG = """what is written:
  voc         JPEGImages, SegmentationClass, SegmentationClassAug and the lists
              ImageSets/Segmentation/{train,aug,trainaug,val}.txt: train.txt names the first half of
              --train, aug.txt the rest (labels in SegmentationClassAug only), trainaug.txt both
  cityscapes  leftImg8bit/{train,val}/mini, gtFine/{train,val}/mini (labelTrainIds)
  camvid      img_dir/{train,val,test}, ann_dir/{train,val,test}
"""


class Sample(NamedTuple):
    """A scene, and the files it goes into, relative to the output folder."""

    split: str
    number: int
    image: str
    labels: list[str]


PALETTES: dict[str, list[int] | None] = {
    'voc': voc_palette(),
    'cityscapes': None,  # its label images are grey
    'camvid': full_palette(CAMVID_PALETTE),
}


def voc_lists(counts: dict[str, int]) -> dict[str, list[str]]:
    """Returns the names in each list of ImageSets/Segmentation."""
    train, val = (
        [f'{year}_{number:06d}' for number in range(counts[split])]
        for split, year in (('train', 2011), ('val', 2012))
    )
    half = (len(train) + 1) // 2
    return {'train': train[:half], 'aug': train[half:], 'trainaug': train, 'val': val}


def voc_samples(counts: dict[str, int]) -> Iterator[Sample]:
    """Lists Pascal VOC's files; as in the real set, SegmentationClass lacks the augmented ones."""
    lists = voc_lists(counts)
    for split, names in (('train', lists['trainaug']), ('val', lists['val'])):
        for number, name in enumerate(names):
            folders = ['SegmentationClassAug']
            if name not in lists['aug']:
                folders.append('SegmentationClass')
            labels = [f'{folder}/{name}.png' for folder in folders]
            yield Sample(split, number, f'JPEGImages/{name}.jpg', labels)


def cityscapes_samples(counts: dict[str, int]) -> Iterator[Sample]:
    """Lists Cityscapes' files; the city is called mini."""
    for split, count in counts.items():
        for number in range(count):
            name = f'{split}/mini/mini_{number:06d}_000019'
            image = f'leftImg8bit/{name}_leftImg8bit.png'
            yield Sample(split, number, image, [f'gtFine/{name}_gtFine_labelTrainIds.png'])


def camvid_samples(counts: dict[str, int]) -> Iterator[Sample]:
    """Lists CamVid's files."""
    for split, count in counts.items():
        for number in range(count):
            name = f'{split}/mini_{number:06d}'
            yield Sample(split, number, f'img_dir/{name}.jpg', [f'ann_dir/{name}.png'])


SAMPLES = {'voc': voc_samples, 'cityscapes': cityscapes_samples, 'camvid': camvid_samples}


def write_dataset(
    layout: str, out: Path, counts: dict[str, int], size: tuple[int, int], seed: int
) -> dict[str, ClassCount]:
    """Draws all scenes, writes them and returns the class counts of each split."""
    todo = list(SAMPLES[layout](counts))
    classes = {split: ClassCount(CLASSES[layout]) for split in counts}
    palette = PALETTES[layout]
    bar = ProgressBar(len(todo))
    for sample in todo:
        image, label = draw_scene(layout, size, seed, sample.split, sample.number)
        save_image(Image.fromarray(image), out / sample.image)
        label_image = Image.fromarray(label)
        if palette is not None:
            label_image.putpalette(palette)
        for path in sample.labels:
            save_image(label_image, out / path)
        classes[sample.split].add(label)
        bar.update()
    print()
    if layout == 'voc':
        folder = out / 'ImageSets' / 'Segmentation'
        folder.mkdir(parents=True, exist_ok=True)
        for name, names in voc_lists(counts).items():
            (folder / f'{name}.txt').write_text(''.join(f'{line}\n' for line in names))
    return classes


def count_strangers(layout: str, out: Path, counts: dict[str, int]) -> int:
    """Counts the files beside the written ones, which the dataset classes would read along."""
    todo = list(SAMPLES[layout](counts))
    written = {out / path for sample in todo for path in (sample.image, *sample.labels)}
    return sum(
        path not in written for folder in {p.parent for p in written} for path in folder.iterdir()
    )


def parse_args() -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--layout', required=True, choices=LAYOUTS, help='whose folder layout')
    parser.add_argument('--out', required=True, type=Path, metavar='DIR', help='output folder')
    parser.add_argument('--train', type=int, default=64, metavar='N', help='training images (64)')
    parser.add_argument('--val', type=int, default=16, metavar='N', help='validation images (16)')
    parser.add_argument(
        '--test', type=int, metavar='N', help='test images, camvid only (as many as --val)'
    )
    parser.add_argument(
        '--size',
        type=parse_size,
        default=(128, 128),
        metavar='HxW',
        help='height x width in pixels (128x128)',
    )
    parser.add_argument('--seed', type=int, default=0, metavar='S', help='0 or more (0)')
    parser.add_argument(
        '--force',
        action='store_true',
        help='write into a folder that is not empty: files of the same name are replaced, '
        'others stay',
    )
    args = parser.parse_args()
    if args.test is not None and args.layout != 'camvid':
        parser.error(f'--test is for --layout camvid; {args.layout} has no labelled test images')
    if args.test is None:
        args.test = args.val
    for name in ('train', 'val', 'test'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} {getattr(args, name)}: give 1 or more')
    if args.seed < 0:
        parser.error(f'--seed {args.seed}: give 0 or more')
    if min(args.size) < MIN_SIDE:
        parser.error(
            f'--size {args.size[0]}x{args.size[1]} is too small for the objects; '
            f'give at least {MIN_SIDE}x{MIN_SIDE}'
        )
    return args


def main() -> None:
    """Draws the data set the command line asks for."""
    args = parse_args()
    if args.out.exists() and not args.out.is_dir():
        sys.exit(f'error: --out {args.out} is a file; name a folder')
    if args.out.is_dir() and any(args.out.iterdir()) and not args.force:
        sys.exit(
            f'error: --out {args.out} is not empty; name another folder, or add --force to replace '
            'files of the same name in it'
        )
    counts = {'train': args.train, 'val': args.val}
    if args.layout == 'camvid':
        counts['test'] = args.test
    cv2.setNumThreads(1)  # the pictures are too small to share
    try:
        classes = write_dataset(args.layout, args.out, counts, args.size, args.seed)
    except DoesNotFitError as error:
        sys.exit(f'\nerror: {error}; give a larger or less elongated --size')
    except OSError as error:
        sys.exit(f'\nerror: cannot write to --out {args.out} ({error}); name another folder')
    except KeyboardInterrupt:
        sys.exit(f'\ninterrupted; {args.out} is incomplete, delete it or run again with --force')
    print(format_table(classes))
    for split, count in classes.items():
        missing = [
            name for name, n in zip(count.classes, count.occurrences, strict=False) if n == 0
        ]
        if missing:
            print(f'note: {split} is too small to show {", ".join(missing)}')
    if strangers := count_strangers(args.layout, args.out, counts):
        print(f'note: {strangers} other files were there before and may be read along')
    print(f'wrote {" + ".join(f"{n} {split}" for split, n in counts.items())} images to {args.out}')


if __name__ == '__main__':
    main()
