"""Segment a video, or what a camera sees, with a trained model.

Every frame becomes one image: the frame and every output (each network's and their ensemble) laid
over it, with a legend of the classes. They are written as a video, shown in a window, or both.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import PREDICTION, Parser, at_least, program


def main(argv: Sequence[str] | None = None) -> None:
    """Segment and draw."""
    parser = Parser(__doc__)
    parser.add_argument('video', help='video file, or the number of a camera')
    parser.share(*PREDICTION)
    parser.share('--out', metavar='FILE', help='video to write, such as segmented.mp4')
    parser.add_argument('--show', action='store_true', help='show the frames in a window')
    parser.add_argument(
        '--fourcc', default='mp4v', help='codec of the written video; default: mp4v'
    )
    parser.add_argument('--fps', type=float, help="frames a second; default: the input's")
    parser.add_argument(
        '--max-frames', type=at_least(1), metavar='N', help='stop after this many; default: all'
    )
    args = parser.parse_args(argv)
    if not (args.out or args.show):
        parser.error('nothing would be left: give --out FILE, --show or both')
    if len(args.fourcc) != 4:
        parser.error(f'--fourcc takes four characters such as mp4v, not {args.fourcc!r}')
    if args.fps is not None and args.fps <= 0:
        parser.error(f'--fps has to be above 0, not {args.fps}')

    from mmseg_coop.apis.predict import predict_video

    predict_video(**vars(args))


if __name__ == '__main__':
    program(main)
