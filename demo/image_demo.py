"""Segment an image, a folder or all files that match a pattern with a trained model.

For every image it writes one picture: the image and every output (each network's and their
ensemble) laid over it, with a legend of the classes. Images are segmented whole, also where the
config evaluates a crop of the centre.
"""

from __future__ import annotations

import argparse
import glob
import os.path as osp
import sys
from pathlib import Path

import mmcv
from mmengine.utils import track_iter_progress

from mmseg_coop.apis.predict import Predictor, add_arguments
from mmseg_coop_cli import short_errors

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', help="an image, a folder, or a pattern in quotes: 'street/*.jpg'")
    add_arguments(parser)
    parser.add_argument(
        '--out', default='outputs', metavar='DIR', help='folder for the pictures; default: outputs'
    )
    parser.add_argument(
        '--labels', action='store_true', help='also write the label maps, as OUT/OUTPUT/NAME.png'
    )
    return parser.parse_args()


def find_images(text: str) -> list[Path]:
    """Find the images.

    Args:
        text: A file, a folder or a pattern.

    Returns:
        The files, sorted.

    Raises:
        FileNotFoundError: There is none.
    """
    if osp.isfile(text):
        return [Path(text)]
    candidates = Path(text).iterdir() if osp.isdir(text) else glob.glob(text, recursive=True)
    images = sorted(p for p in map(Path, candidates) if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(
            f'{text!r} is no image and leads to none ({" ".join(IMAGE_SUFFIXES)}); give a file, a '
            "folder or a pattern in quotes such as 'street/*.jpg'."
        )
    return images


def plan(images: list[Path], out: Path, folders: list[str], overwrite: bool) -> list[list[Path]]:
    """Name the files to write for every image.

    Images of several folders keep their folders below the one they share.

    Args:
        images: The images.
        out: Folder for all that is written.
        folders: Folders inside of it, one a kind of file.
        overwrite: Whether files may exist.

    Returns:
        For every image one file a folder.

    Raises:
        FileExistsError: A file exists, or two images would write the same.
    """
    shared = osp.commonpath([image.resolve().parent for image in images])
    sources: dict[Path, Path] = {}
    files = []
    for image in images:
        name = Path(osp.relpath(image.resolve(), shared)).with_suffix('.png')
        other = sources.setdefault(name, image)
        if other is not image:
            raise FileExistsError(f'{other} and {image} would write the same {name}; rename one.')
        files.append([out / folder / name for folder in folders])
        for file in files[-1]:
            if file.exists() and not overwrite:
                raise FileExistsError(
                    f'{str(file)!r} exists; choose another --out, or --overwrite.'
                )
    return files


def main() -> None:
    """Segment and draw."""
    args = parse_args()
    with short_errors():
        images = find_images(args.images)
        predictor = Predictor(args)
        folders = ['.', *(predictor.outputs if args.labels else [])]
        files = plan(images, Path(args.out), folders, args.overwrite)
    unreadable = []
    for image, targets in track_iter_progress(
        list(zip(images, files, strict=True)), file=sys.stderr
    ):
        pixels = mmcv.imfrombytes(image.read_bytes()) if image.stat().st_size else None
        if pixels is None:
            unreadable.append(image)
            continue
        sample = predictor.predict(pixels)
        mmcv.imwrite(predictor.draw(pixels, sample), str(targets[0]))
        for label_map, target in zip(predictor.label_maps(sample).values(), targets[1:]):  # noqa: B905
            mmcv.imwrite(label_map, str(target))
    print(
        f'{len(images) - len(unreadable)} of {len(images)} images segmented, outputs '
        f'{", ".join(predictor.outputs)}; pictures in {args.out}'
    )
    if unreadable:
        sys.exit(f'error: not readable as images: {", ".join(map(str, unreadable))}')


if __name__ == '__main__':
    main()
