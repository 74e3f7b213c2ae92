"""Segment images with a model that export_onnx.py has written.

Needs numpy, opencv-python and onnxruntime only, and this file works on its own. Images are loaded
(with their second image, such as depth, where the model takes one) and resized as in the model's
test pipeline, or to fit into the graph if its size is fixed; a model that wants a
sliding window gets it. The logits are resized back. For every image it writes one image: the
input and every output laid over it, with a legend of the classes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
FONT, BAR, GAP, MIN_PANEL = cv2.FONT_HERSHEY_SIMPLEX, 22, 4, 240  # sizes in pixels


class InputError(ValueError):
    """What the user can put right; the message says how."""


class Model:
    """An exported model with what its metadata says.

    Args:
        path: ONNX file.
        outputs: Names of the outputs to compute, or None for all.
        providers: Execution providers, or None for the first that is available.

    Raises:
        InputError: The file, an output or a provider does not fit.
    """

    def __init__(
        self, path: str, outputs: Sequence[str] | None, providers: Sequence[str] | None
    ) -> None:
        import onnxruntime

        available = onnxruntime.get_available_providers()
        for provider in providers or ():
            if provider not in available:
                raise InputError(f'provider {provider!r} is not available; there are {available}.')
        try:
            self.session = onnxruntime.InferenceSession(path, providers=providers or available)
        except Exception as error:  # onnxruntime's own types, which share no base
            raise InputError(
                f'{path!r} cannot be loaded: {" ".join(str(error).split())}'
            ) from error
        stored = self.session.get_modelmeta().custom_metadata_map
        if 'classes' not in stored:
            raise InputError(f'{path!r} holds no class names; write it with export_onnx.py.')
        self.info = {key: json.loads(value) for key, value in stored.items()}
        for name in outputs or ():
            if name not in self.info['outputs']:
                raise InputError(
                    f'output {name!r} is unknown; the model has {self.info["outputs"]}.'
                )
        self.outputs = [n for n in self.info['outputs'] if outputs is None or n in outputs]
        height, width = self.session.get_inputs()[0].shape[2:]
        #: Height and width of the graph, or None if they are free.
        self.size = (height, width) if isinstance(height, int) else None

    def __call__(self, image: Array) -> dict[str, Array]:
        """Segment an image.

        Args:
            image: BGR and further channels of the model, ``(H, W, C)``, as :func:`load` reads it.

        Returns:
            Label map of every output, ``(H, W)``, uint8.
        """
        height, width = image.shape[:2]
        resized = self._resize(image)  # OpenCV drops the axis of a single channel
        rgb = resized.reshape(*resized.shape[:2], -1).astype(np.float32)
        rgb[..., :3] = rgb[..., 2::-1].copy()
        scores = self._slide(rgb) if self.info['slide'] else self._run(rgb)
        labels = {}
        for name, of_output in zip(self.outputs, scores, strict=True):
            of_output = cv2.resize(of_output, (width, height))
            if self.info['threshold'] is not None:  # OpenCV drops the axis of a single channel
                label_map = 1 / (1 + np.exp(-of_output)) > self.info['threshold']
            else:
                label_map = of_output.argmax(axis=2)
            labels[name] = label_map.astype(np.uint8)
        return labels

    def _resize(self, image: Array) -> Array:
        """Bring an image to the size that the model sees."""
        height, width = image.shape[:2]
        resize = self.info['resize']
        if self.size is not None and not self.info['slide']:
            scale = min(self.size[0] / height, self.size[1] / width)
            target = (max(1, round(width * scale)), max(1, round(height * scale)))
        elif resize is None:
            return image
        elif resize['keep_ratio']:
            # The long side of the image into the long one of the scale, the short into the short.
            short, long = sorted(resize['scale'])
            scale = min(long / max(height, width), short / min(height, width))
            target = (int(width * scale + 0.5), int(height * scale + 0.5))
        else:
            target = tuple(resize['scale'])
        return cv2.resize(image, target)

    def _run(self, rgb: Array) -> list[Array]:
        """Logits of all outputs, ``(H, W, C)`` each, for an image of at most the graph's size."""
        height, width = rgb.shape[:2]
        if self.size is not None:
            padded = np.empty((*self.size, rgb.shape[2]), np.float32)
            padded[:] = self.info['padding']
            padded[:height, :width] = rgb
            rgb = padded
        x = np.ascontiguousarray(rgb.transpose(2, 0, 1)[None])
        logits = self.session.run(self.outputs, {'image': x})
        return [
            np.ascontiguousarray(of_output[0, :, :height, :width].transpose(1, 2, 0))
            for of_output in logits
        ]

    def _slide(self, rgb: Array) -> list[Array]:
        """Logits of all outputs, averaged where windows overlap; the last ones end at the edge."""
        starts = []
        for length, window, stride in zip(
            rgb.shape[:2], self.info['slide']['window'], self.info['slide']['stride'], strict=True
        ):
            last = max(length - window, 0)
            starts.append([*range(0, last, stride), last])
        height, width = self.info['slide']['window']
        sums: list[Array] = []
        count = np.zeros((*rgb.shape[:2], 1), np.float32)
        for top in starts[0]:
            for left in starts[1]:
                here = np.s_[top : top + height, left : left + width]
                count[here] += 1
                for index, of_output in enumerate(self._run(rgb[here])):
                    if index == len(sums):
                        sums.append(np.zeros((*rgb.shape[:2], of_output.shape[2]), np.float32))
                    sums[index][here] += of_output
        return [total / count for total in sums]


def find_images(paths: Sequence[str]) -> Iterator[Path]:
    """Images among files and folders."""
    for path in map(Path, paths):
        if path.is_file():
            yield path
        elif path.is_dir():
            files = [f for f in sorted(path.iterdir()) if f.suffix.lower() in IMAGE_SUFFIXES]
            if not files:
                raise InputError(
                    f'folder {str(path)!r} holds no image ({" ".join(IMAGE_SUFFIXES)}).'
                )
            yield from files
        else:
            raise FileNotFoundError(f'{str(path)!r} does not exist.')


def load(path: Path, steps: Sequence[dict[str, Any]]) -> Array:
    """Load an image as the transforms of a test pipeline do.

    Args:
        path: The image.
        steps: ``loading`` of the model's metadata.

    Returns:
        ``(H, W, C)``: BGR, then the channels of the second image, as they are stored.

    Raises:
        InputError: A file cannot be read, or the second image does not fit the first.
    """
    flags = dict(unchanged=cv2.IMREAD_UNCHANGED, grayscale=cv2.IMREAD_GRAYSCALE)
    image = read(path, flags.get(steps[0].get('color_type', 'color'), cv2.IMREAD_COLOR))
    for step in steps[1:]:
        (old, new), (ending, other) = step['folder'], step.get('suffix', ('.jpg', '.png'))
        before, folder, name = f'/{path.as_posix()}'.rpartition(f'/{old}/')
        if not folder or not name.endswith(ending):
            raise InputError(
                f'{str(path)!r} is not named {old}/…{ending}, to find {new}/…{other} by.'
            )
        second = Path(f'{before}/{new}/{name.removesuffix(ending)}{other}'[1:])
        further = read(second, cv2.IMREAD_UNCHANGED)
        if further.shape[:2] != image.shape[:2]:
            raise InputError(
                f'{str(second)!r} is of {further.shape[0]}x{further.shape[1]} pixels, but '
                f'{str(path)!r} of {image.shape[0]}x{image.shape[1]}.'
            )
        kind = np.uint8 if image.dtype == further.dtype == np.uint8 else np.float32
        image = np.concatenate([image.astype(kind), further.astype(kind)], axis=2)
    return image


def read(path: Path, flag: int) -> Array:
    """Read an image file, ``(H, W, C)``; an InputError if it is none."""
    # Not imread: on Windows it takes no name beyond ASCII.
    content = np.fromfile(path, np.uint8)
    image = cv2.imdecode(content, flag) if content.size else None
    if image is None:
        raise InputError(f'{str(path)!r} is not an image that OpenCV reads.')
    return image.reshape(*image.shape[:2], -1)


def draw(image: Array, labels: dict[str, Array], info: dict[str, Any], opacity: float) -> Array:
    """Draw an image, BGR, and the label maps of its outputs side by side over a legend."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(info['palette'])] = np.array(info['palette'], np.uint8)[:, ::-1]
    panels = {'input': image}
    for name, label_map in labels.items():
        panels[name] = cv2.addWeighted(image, 1 - opacity, colors[label_map], opacity, 0)
    scale = max(1, math.ceil(MIN_PANEL / image.shape[0]))
    row = []
    for name, panel in panels.items():
        enlarged = cv2.resize(panel, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        bar = np.full((BAR, enlarged.shape[1], 3), 255, np.uint8)
        cv2.putText(bar, name, (GAP, BAR - 7), FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        row += [
            np.concatenate([bar, enlarged]),
            np.full((BAR + len(enlarged), GAP, 3), 255, np.uint8),
        ]
    drawn = np.concatenate(row[:-1], axis=1)

    column = 40 + max(cv2.getTextSize(name, FONT, 0.45, 1)[0][0] for name in info['classes'])
    columns = max(1, drawn.shape[1] // column)
    rows = math.ceil(len(info['classes']) / columns)
    legend = np.full((rows * BAR + GAP, drawn.shape[1], 3), 255, np.uint8)
    for index, name in enumerate(info['classes']):
        x, y = (index % columns) * column + GAP, (index // columns) * BAR + GAP
        cv2.rectangle(legend, (x, y), (x + 22, y + 14), colors[index].tolist(), -1)
        cv2.putText(legend, name, (x + 28, y + 12), FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([drawn, legend])


def write(file: Path, image: Array) -> None:
    """Write a PNG file, in a folder that need not exist yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(file), image):
        raise OSError(f'{str(file)!r} cannot be written.')


def segment(
    model: str,
    images: Sequence[str],
    out: Path,
    *,
    outputs: Sequence[str] | None = None,
    labels: bool = False,
    opacity: float = 0.5,
    force: bool = False,
    providers: Sequence[str] | None = None,
) -> None:
    """Segment images; the arguments are those of the command line.

    Raises:
        InputError: An argument or a file does not fit.
        OSError: A file does not exist, or would be replaced.
    """
    network = Model(model, outputs, providers)
    sources: dict[Path, Path] = {}  # of every file that is written
    for path in find_images(images):
        file = out / f'{path.stem}.png'
        other = sources.setdefault(file, path)
        if other is not path:
            raise InputError(f'{path} and {other} would write the same file; run them apart.')
        for target in [file, *(out / name / file.name for name in network.outputs if labels)]:
            if target.exists() and not force:
                raise FileExistsError(f'{str(target)!r} exists; choose another --out, or --force.')
    seconds = 0.0
    for file, path in sources.items():
        image = load(path, network.info['loading'])
        start = time.perf_counter()
        label_maps = network(image)
        seconds += time.perf_counter() - start
        colours = read(path, cv2.IMREAD_COLOR)
        write(file, draw(colours, label_maps, network.info, opacity))
        for name, label_map in label_maps.items() if labels else ():
            write(out / name / file.name, label_map)
    print(
        f'{len(sources)} images, outputs {", ".join(network.outputs)}, '
        f'{1000 * seconds / len(sources):.1f} ms an image; written to {out}'
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Segment, and end with one line where something does not fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('model', help='ONNX file')
    parser.add_argument('images', nargs='+', help='images, or folders of images')
    parser.add_argument('--out', type=Path, required=True, help='folder to write to')
    parser.add_argument('--outputs', nargs='+', metavar='NAME', help='which outputs; default: all')
    parser.add_argument(
        '--labels', action='store_true', help='also write the label maps, as OUT/OUTPUT/NAME.png'
    )
    parser.add_argument(
        '--opacity', type=float, default=0.5, help='of the classes, 0 to 1; default: 0.5'
    )
    parser.add_argument('--force', action='store_true', help='overwrite files that exist')
    parser.add_argument(
        '--providers',
        nargs='+',
        metavar='NAME',
        help='execution providers of onnxruntime, e.g. CUDAExecutionProvider; default: the first '
        'that is available',
    )
    args = parser.parse_args(argv)
    if not 0 <= args.opacity <= 1:
        parser.error(f'--opacity takes 0 to 1, not {args.opacity}')
    try:
        segment(**vars(args))
    except (InputError, OSError) as error:
        parser.exit(1, f'error: {error}\n')


if __name__ == '__main__':
    main()
