"""Evaluate a checkpoint: every network's output and their ensemble in one pass."""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import RUN, Parser, program


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate."""
    parser = Parser(__doc__)
    parser.share('config', 'checkpoint', *RUN)
    parser.add_argument(
        '--output',
        metavar='NAME',
        help="which output is the prediction: a network's name (e.g. top, bottom) or ensemble; all "
        'keeps the one of the config and writes every one with --out',
    )
    parser.share(
        '--out',
        metavar='DIR',
        help='write the label maps of whole images as PNG; with --output all each output into its '
        'own folder',
    )
    parser.add_argument(
        '--palette',
        action='store_true',
        help="write them as palette PNG in the dataset's colours, as VOC's evaluation server wants",
    )
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='write images of input, ground truth and all outputs side by side',
    )
    parser.add_argument('--show', action='store_true', help='show these images in a window')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds an image is shown; default: 2'
    )
    parser.add_argument(
        '--tta', action='store_true', help='average over the augmentations of tta_pipeline'
    )
    parser.share('--force', '--optimize', '--dtype')
    args = parser.parse_args(argv)
    if args.palette and args.out is None:
        parser.error('--palette is about the label maps that --out DIR writes')

    from mmseg_coop.apis import test

    test(**vars(args))


if __name__ == '__main__':
    program(main)
