"""Segment a video, or what a camera sees, with a trained model.

Every frame becomes one picture: the frame and every output (each network's and their ensemble) laid
over it, with a legend of the classes. They are written as a video, shown in a window, or both.
"""

from __future__ import annotations

import argparse
import os
import os.path as osp
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
from mmengine.utils import ProgressBar

from mmseg_coop.apis.predict import Array, Predictor, add_arguments
from mmseg_coop_cli import short_errors

WINDOW = 'press q to stop'


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('video', help='video file, or the number of a camera')
    add_arguments(parser)
    parser.add_argument('--out', metavar='FILE', help='video to write, such as segmented.mp4')
    parser.add_argument('--show', action='store_true', help='show the frames in a window')
    parser.add_argument(
        '--fourcc', default='mp4v', help='codec of the written video; default: mp4v'
    )
    parser.add_argument('--fps', type=float, help="frames a second; default: the input's")
    parser.add_argument(
        '--max-frames', type=int, metavar='N', help='stop after this many; default: all'
    )
    args = parser.parse_args()
    if not (args.out or args.show):
        parser.error('nothing would be left: give --out FILE, --show or both')
    if len(args.fourcc) != 4:
        parser.error(f'--fourcc takes four characters such as mp4v, not {args.fourcc!r}')
    for name in ('fps', 'max_frames'):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f'--{name.replace("_", "-")} has to be above 0, not {value}')
    return args


def open_video(video: str) -> cv2.VideoCapture:
    """Open a file or a camera.

    Args:
        video: File, or number of a camera.

    Returns:
        The open video.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: OpenCV cannot read it.
    """
    camera = video.isdecimal() and not osp.exists(video)
    if not camera and '://' not in video and not osp.isfile(video):
        raise FileNotFoundError(f'video {video!r} does not exist.')
    capture = cv2.VideoCapture(int(video) if camera else video)
    if not capture.isOpened():
        raise ValueError(f'{"camera" if camera else "video"} {video!r} cannot be read by OpenCV.')
    return capture


def frames(capture: cv2.VideoCapture, limit: int | None) -> Iterator[Array]:
    """Frames of a video, BGR, ``(H, W, 3)``, with a progress bar."""
    total = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))  # 0: a camera
    bar = ProgressBar(min(total, limit) if total and limit else limit or total, file=sys.stderr)
    while limit is None or bar.completed < limit:
        found, frame = capture.read()
        if not found:
            break
        yield frame
        bar.update()
    print(file=sys.stderr)


class Writer:
    """Writes a video under another name first, so that none is ever half written.

    Args:
        file: The video.
        fourcc: Its codec.
        fps: Frames a second.
    """

    def __init__(self, file: Path, fourcc: str, fps: float) -> None:
        self.file, self.fourcc, self.fps = file, fourcc, fps
        self.part = file.with_name(f'.{file.stem}.{os.getpid()}{file.suffix}')
        self.writer: cv2.VideoWriter | None = None

    def write(self, picture: Array) -> None:
        """Add a picture, BGR, of the same size as all others."""
        # Most codecs want even sides.
        height, width = picture.shape[:2]
        picture = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self.writer is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*self.fourcc)
            self.writer = cv2.VideoWriter(
                str(self.part), code, self.fps, (picture.shape[1], picture.shape[0])
            )
            if not self.writer.isOpened():
                self.part.unlink(missing_ok=True)
                sys.exit(
                    f'error: OpenCV cannot write {str(self.file)!r} with --fourcc {self.fourcc}; '
                    'mp4v suits .mp4, MJPG suits .avi'
                )
        self.writer.write(picture)

    def close(self, keep: bool) -> None:
        """Finish the video, and give it its name if it is to be kept."""
        if self.writer is not None:
            self.writer.release()
            if keep:
                os.replace(self.part, self.file)
        self.part.unlink(missing_ok=True)


def main() -> None:
    """Segment and draw."""
    args = parse_args()
    with short_errors():
        if args.out and osp.exists(args.out) and not args.overwrite:
            raise FileExistsError(f'{args.out!r} exists; choose another --out, or --overwrite.')
        capture = open_video(args.video)
        predictor = Predictor(args)
    fps = args.fps or capture.get(cv2.CAP_PROP_FPS) or 25.0
    writer = Writer(Path(args.out), args.fourcc, fps) if args.out else None
    count, finished = 0, False
    try:
        for frame in frames(capture, args.max_frames):
            picture = predictor.draw(frame, predictor.predict(frame))
            count += 1
            if writer is not None:
                writer.write(picture)
            if args.show:
                cv2.imshow(WINDOW, picture)
                if cv2.waitKey(1) & 0xFF == ord('q'):
                    break
        finished = count > 0
    finally:
        capture.release()
        if writer is not None:
            writer.close(keep=finished)
    if not finished:
        sys.exit(f'error: video {args.video!r} holds no frame that OpenCV reads')
    where = f'; video in {args.out}' if args.out else ''
    print(f'{count} frames segmented, outputs {", ".join(predictor.outputs)}{where}')


if __name__ == '__main__':
    main()
