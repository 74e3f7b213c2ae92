"""Segments images and videos with a trained model and draws all outputs."""

from __future__ import annotations

import glob
import os
import os.path as osp
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine.utils import ProgressBar, track_iter_progress
from mmseg.apis import inference_model
from mmseg.structures import SegDataSample

from ..config import load_config
from ..errors import CoopError, DataError, InputError
from ..visualization import CoopLocalVisualizer
from ..visualization.panels import label_maps
from .model import choose_device, choose_outputs, load_model, refuse_existing

Array = np.ndarray[Any, Any]

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


class Predictor:
    """Segments images and draws all outputs.

    Args:
        config: Config file.
        checkpoint: Checkpoint: a file, or an address that mmengine reads.
        outputs: Names of the outputs to draw. Defaults to None: all.
        device: Where to compute. Defaults to None: CUDA where there is one.
        **options: ``optimize`` and ``dtype``, as of :func:`load_model`.
        opacity: Of the classes, 0 to 1. Defaults to 0.5.
        cfg_options: Values that override the config's, see :func:`load_config`. Defaults to None.

    Raises:
        CoopError: An argument does not fit the model.
        FileNotFoundError: The config or the checkpoint do not exist.
    """

    def __init__(
        self,
        config: str,
        checkpoint: str,
        *,
        outputs: Sequence[str] | None = None,
        device: str | None = None,
        opacity: float = 0.5,
        cfg_options: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        if not 0 <= opacity <= 1:
            raise InputError(f'--opacity takes 0 to 1, not {opacity}.')
        cfg = load_config(config, cfg_options=cfg_options)
        self.model = load_model(cfg, checkpoint, device=choose_device(device), **options)
        #: Names of the outputs to draw, in the order of the model.
        self.outputs = choose_outputs(self.model, outputs)
        self.visualizer = CoopLocalVisualizer(alpha=opacity)
        self.visualizer.dataset_meta = self.model.dataset_meta

    def predict(self, image: Array | str) -> SegDataSample:
        """Segment an image.

        Args:
            image: Its file, which the config's test pipeline loads, or BGR, ``(H, W, 3)``, uint8.

        Returns:
            All that the model knows of it.

        Raises:
            DataError: The pipeline cannot use the file, or finds no second image for it.
            InputError: The model takes other channels than the image has.
        """
        sample = inference_model(self.model, image)
        if 'pred_outputs' in sample:
            sample.set_metainfo(dict(output_names=tuple(self.outputs)))
        return sample

    def label_maps(self, sample: SegDataSample) -> dict[str, Array]:
        """Label map of every output, ``(H, W)``, uint8."""
        maps = label_maps(sample, truth=False)
        return {name: label_map.astype(np.uint8) for name, label_map in maps.items()}

    def draw(self, image: Array, sample: SegDataSample) -> Array:
        """Draw an image and its outputs side by side, with a legend; both images are BGR."""
        self.visualizer.add_datasample('prediction', mmcv.bgr2rgb(image), sample, draw_gt=False)
        return mmcv.rgb2bgr(self.visualizer.get_image())


def predict_images(
    images: str,
    config: str,
    checkpoint: str,
    *,
    out: str | Path = 'outputs',
    labels: bool = False,
    force: bool = False,
    **options: Any,
) -> None:
    """Segment images, and write one image of all outputs for each.

    Args:
        images: A file, a folder or a pattern such as ``'street/*.jpg'``.
        config: Config file.
        checkpoint: Checkpoint.
        out: Folder to write to. Defaults to ``'outputs'``.
        labels: Whether to write the label maps as well, as ``out/OUTPUT/NAME.png``. Defaults to
            False.
        force: Whether to replace files. Defaults to False.
        **options: As of :class:`Predictor`.

    Raises:
        OSError: There are no images, or files would be replaced.
        DataError: Files are no images, or lack their second image; all others have been segmented.
        CoopError: An argument does not fit the model.
    """
    files = find_images(images)
    predictor = Predictor(config, checkpoint, **options)
    folders = ['.', *(predictor.outputs if labels else [])]
    targets = _plan(files, Path(out), folders, force)
    faults = []
    for file, (drawn, *maps) in track_iter_progress(
        list(zip(files, targets, strict=True)), file=sys.stderr
    ):
        image = mmcv.imfrombytes(file.read_bytes()) if file.stat().st_size else None
        if image is None:
            faults.append(f'{file} is not readable as an image')
            continue
        try:
            sample = predictor.predict(str(file))
        except DataError as fault:
            faults.append(str(fault))
            continue
        mmcv.imwrite(predictor.draw(image, sample), str(drawn))
        if labels:
            for target, label_map in zip(maps, predictor.label_maps(sample).values(), strict=True):
                mmcv.imwrite(label_map, str(target))
    print(
        f'{len(files) - len(faults)} of {len(files)} images segmented, outputs '
        f'{", ".join(predictor.outputs)}; written to {out}'
    )
    if faults:
        raise DataError('; '.join(faults))


def find_images(text: str) -> list[Path]:
    """Find the images that a file, a folder or a pattern leads to, sorted."""
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


def _plan(images: list[Path], out: Path, folders: list[str], force: bool) -> list[list[Path]]:
    """Files to write for every image, one a folder; images keep the folders below a shared one."""
    shared = osp.commonpath([image.resolve().parent for image in images])
    sources: dict[Path, Path] = {}
    for image in images:
        name = Path(osp.relpath(image.resolve(), shared)).with_suffix('.png')
        other = sources.setdefault(name, image)
        if other is not image:
            raise FileExistsError(f'{other} and {image} would write the same {name}; rename one.')
    targets = [[out / folder / name for folder in folders] for name in sources]
    refuse_existing(*(file for files in targets for file in files), force=force)
    return targets


def predict_video(
    video: str,
    config: str,
    checkpoint: str,
    *,
    out: str | Path | None = None,
    show: bool = False,
    fourcc: str = 'mp4v',
    fps: float | None = None,
    max_frames: int | None = None,
    force: bool = False,
    **options: Any,
) -> None:
    """Segment the frames of a video, and write or show all outputs.

    A frame has three channels, so this is for models of colour images.

    Args:
        video: Video file, or the number of a camera.
        config: Config file.
        checkpoint: Checkpoint.
        out: Video to write. Defaults to None: none.
        show: Whether to show the frames in a window, until q is pressed. Defaults to False.
        fourcc: Codec of the written video. Defaults to ``'mp4v'``.
        fps: Frames a second. Defaults to None: the input's.
        max_frames: Where to stop. Defaults to None: at the end.
        force: Whether to replace the video. Defaults to False.
        **options: As of :class:`Predictor`.

    Raises:
        OSError: The video does not exist, or ``out`` does.
        DataError: OpenCV cannot read the video.
        CoopError: An argument does not fit the model, or OpenCV cannot write the codec.
    """
    refuse_existing(out, force=force)
    capture = _open_video(video)
    predictor = Predictor(config, checkpoint, **options)
    fps = fps or capture.get(cv2.CAP_PROP_FPS) or 25.0
    total = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))  # 0: a camera
    limit = max_frames or sys.maxsize
    bar = ProgressBar(min(total, limit) if total else max_frames or 0, file=sys.stderr)
    with _video_writer(Path(out) if out else None, fourcc, fps) as write:
        while bar.completed < limit:
            found, frame = capture.read()
            if not found:
                break
            drawn = predictor.draw(frame, predictor.predict(frame))
            bar.update()
            write(drawn)
            if show:
                cv2.imshow('press q to stop', drawn)
                if cv2.waitKey(1) & 0xFF == ord('q'):
                    break
        capture.release()
        print(file=sys.stderr)
        if not bar.completed:
            raise DataError(f'video {video!r} holds no frame that OpenCV reads')
    where = f'; video in {out}' if out else ''
    print(f'{bar.completed} frames segmented, outputs {", ".join(predictor.outputs)}{where}')


def _open_video(video: str) -> cv2.VideoCapture:
    """Open a file, an address or a camera."""
    camera = video.isdecimal() and not osp.exists(video)
    if not camera and '://' not in video and not osp.isfile(video):
        raise FileNotFoundError(f'video {video!r} does not exist.')
    capture = cv2.VideoCapture(int(video) if camera else video)
    if not capture.isOpened():
        raise DataError(f'{"camera" if camera else "video"} {video!r} cannot be read by OpenCV.')
    return capture


@contextmanager
def _video_writer(file: Path | None, fourcc: str, fps: float) -> Iterator[Any]:
    """Give a function that adds an image, BGR, to a video, which gets its name when it is whole."""
    part = file and file.with_name(f'.{file.stem}.{os.getpid()}{file.suffix}')
    writer: cv2.VideoWriter | None = None

    def write(image: Array) -> None:
        nonlocal writer
        if not (file and part):
            return
        # Most codecs want even sides.
        height, width = image.shape[:2]
        image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if writer is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*fourcc)
            writer = cv2.VideoWriter(str(part), code, fps, (image.shape[1], image.shape[0]))
            if not writer.isOpened():
                raise CoopError(
                    f'OpenCV cannot write {str(file)!r} with --fourcc {fourcc}; mp4v suits .mp4, '
                    'MJPG suits .avi'
                )
        writer.write(image)

    try:
        yield write
        if writer and file and part:
            writer.release()
            os.replace(part, file)
    finally:
        if writer:
            writer.release()
        if part:
            part.unlink(missing_ok=True)
