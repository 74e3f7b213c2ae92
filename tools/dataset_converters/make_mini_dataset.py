"""Draws a miniature dataset in the folder layout of a real one.

It stands in for the real one where that is missing, in tests or in a first run. The scenes take
some learning, and the dataset classes of mmsegmentation and of this project read them. The same
seed gives the same bytes on the same machine, as long as the versions of numpy, opencv and pillow
are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from _common import (
    Converted,
    Size,
    by_split,
    camvid_palette,
    count_pixels,
    format_table,
    run_jobs,
    save_image,
    voc_palette,
)

from mmseg_coop_cli import Parser, at_least, program

MIN_SIDE = 64
EPILOG = """what is written:
  voc         JPEGImages, SegmentationClass, SegmentationClassAug and the lists
              ImageSets/Segmentation/{train,aug,trainaug,val}.txt: train.txt names the first half of
              --train, aug.txt the rest (labels in SegmentationClassAug only), trainaug.txt both
  cityscapes  leftImg8bit/{train,val}/mini, gtFine/{train,val}/mini (labelTrainIds)
  camvid      img_dir/{train,val,test}, ann_dir/{train,val,test}
  rgbd        as NYUv2: RGB, Depth (millimetres), Label and the lists train.txt and test.txt, the
              latter of the --val images; boxes show in the depth only, pictures and mats in colour
  rgbt        as MFNet: images (colour and, as fourth channel, thermal), labels and the lists
              {train,val,test}.txt; people show in the thermal image only, cones in colour
"""


class Sample(NamedTuple):
    """A scene, and the files it goes into, relative to the output folder."""

    split: str
    number: int
    image: str
    labels: list[str]
    depth: str | None = None


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


def rgbd_samples(counts: dict[str, int]) -> Iterator[Sample]:
    """Lists NYUv2's files."""
    for split, count in counts.items():
        for number in range(count):
            name = f'{split}_{number:06d}'
            yield Sample(
                split, number, f'RGB/{name}.jpg', [f'Label/{name}.png'], f'Depth/{name}.png'
            )


def rgbt_samples(counts: dict[str, int]) -> Iterator[Sample]:
    """Lists MFNet's files."""
    for split, count in counts.items():
        for number in range(count):
            name = f'{split}_{number:06d}D.png'
            yield Sample(split, number, f'images/{name}', [f'labels/{name}'])


class Layout(NamedTuple):
    """What a dataset's layout is made of."""

    samples: Callable[[dict[str, int]], Iterator[Sample]]
    palette: list[int] | None  # None: its label images are grey


WITH_TEST = ('camvid', 'rgbt')
LAYOUTS = {
    'voc': Layout(voc_samples, voc_palette()),
    'cityscapes': Layout(cityscapes_samples, None),
    'camvid': Layout(camvid_samples, camvid_palette()),
    'rgbd': Layout(rgbd_samples, None),
    'rgbt': Layout(rgbt_samples, None),
}


def write_sample(sample: Sample, layout: str, out: Path, size: Size, seed: int) -> Converted:
    """Draws a scene and writes its files."""
    from _mini_layouts import draw_scene

    image, label, depth = draw_scene(layout, size, seed, sample.split, sample.number)
    save_image(image, out / sample.image, None)
    for path in sample.labels:
        save_image(label, out / path, LAYOUTS[layout].palette)
    if sample.depth and depth is not None:
        save_image(depth, out / sample.depth, None)
    return Converted(sample.split, count_pixels(label))


def count_strangers(samples: Sequence[Sample], out: Path) -> int:
    """Counts the files beside the written ones, which the dataset classes would read along."""
    paths = [path for s in samples for path in (s.image, s.depth, *s.labels) if path]
    written = {out / path for path in paths}
    folders = {path.parent for path in written}
    return sum(path not in written for folder in folders for path in folder.iterdir())


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the dataset."""
    parser = Parser(__doc__)
    parser.epilog = EPILOG
    parser.add_argument('--layout', required=True, choices=LAYOUTS, help='whose folder layout')
    parser.share('--out', required=True, type=Path, metavar='DIR', help='output folder')
    for split, default, what in (
        ('train', 64, 'training images; default: 64'),
        ('val', 16, 'validation images; default: 16'),
        ('test', None, 'test images, camvid and rgbt only; default: as many as --val'),
    ):
        parser.add_argument(f'--{split}', type=at_least(1), default=default, metavar='N', help=what)
    parser.share('--size', default=(128, 128), help='height x width in pixels; default: 128x128')
    parser.add_argument(
        '--seed', type=at_least(0), default=0, metavar='S', help='0 or more; default: 0'
    )
    parser.share(
        '--force',
        help='write into a folder that is not empty: files of the same name are replaced, '
        'others stay',
    )
    args = parser.parse_args(argv)
    if args.test and args.layout not in WITH_TEST:
        parser.error(
            f'--test is for --layout {" and ".join(WITH_TEST)}; {args.layout} has no further '
            'labelled images'
        )
    if min(args.size) < MIN_SIDE:
        parser.error(
            f'--size {args.size[0]}x{args.size[1]} is too small for the objects; '
            f'give at least {MIN_SIDE}x{MIN_SIDE}'
        )
    counts = {'train': args.train, 'val': args.val}
    if args.layout in WITH_TEST:
        counts['test'] = args.test or args.val
    write_dataset(args.layout, args.out, counts, args.size, args.seed, args.force)


def write_dataset(
    layout: str, out: Path, counts: dict[str, int], size: Size, seed: int, force: bool
) -> None:
    """Draws all scenes of a layout, writes them and prints what there is of each class.

    Raises:
        OSError: If `out` is a file, or a folder that holds files, without `force`.
        CoopError: If a scene does not fit into the size.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f'--out {out} is a file; name a folder')
    if out.is_dir() and any(out.iterdir()) and not force:
        raise FileExistsError(
            f'--out {out} is not empty; name another folder, or add --force to replace files of '
            'the same name in it'
        )
    import cv2
    from _mini_layouts import CLASSES, SHOWN

    cv2.setNumThreads(1)  # the images are too small to share
    samples = list(LAYOUTS[layout].samples(counts))
    write = partial(write_sample, layout=layout, out=out, size=size, seed=seed)
    again = f'{out} is incomplete, delete it or run again with --force'
    written = by_split(run_jobs(write, samples, interrupted=again), counts)
    if layout == 'voc':
        folder = out / 'ImageSets' / 'Segmentation'
        folder.mkdir(parents=True, exist_ok=True)
        for name, names in voc_lists(counts).items():
            (folder / f'{name}.txt').write_text(''.join(f'{line}\n' for line in names))
    if layout in ('rgbd', 'rgbt'):
        for split in counts:
            names = [Path(sample.image).stem for sample in samples if sample.split == split]
            # NYUv2 has no list for validation
            file = out / ('test.txt' if (layout, split) == ('rgbd', 'val') else f'{split}.txt')
            file.write_text(''.join(f'{name}\n' for name in names))
    print(format_table(written, CLASSES[layout]))
    for split, pixels in written.items():
        absent = [name for value, name in enumerate(CLASSES[layout]) if not pixels[:, value].any()]
        missing = [name for name in absent if name in SHOWN[layout]]
        if missing:
            print(f'note: {split} is too small to show {", ".join(missing)}')
    if strangers := count_strangers(samples, out):
        print(f'note: {strangers} other files were there before and may be read along')
    print(f'wrote {" + ".join(f"{n} {split}" for split, n in counts.items())} images to {out}')


if __name__ == '__main__':
    program(main)
