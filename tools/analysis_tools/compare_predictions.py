r"""Input, ground truth and the outputs of any number of models in one grid a frame.

The last panel shows where only the one, only the other, both or neither of two networks are right.
Frames are chosen by name, or as those on which these two networks disagree most. Each model
predicts the images of its own test_dataloader, prepared by its own pipeline.

An output is named OUTPUT (of the first model) or NUMBER:OUTPUT, where NUMBER counts the models from
1. Example: where two single networks fail, and what their cooperation makes of it

  compare_predictions.py --model R101.py r101.pth --model X65.py x65.pth \
    --model PAIR.py pair.pth ensemble --between 1:r101 2:x65 --most-different 8 --out comparison
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import Parser, at_least, program


def main(argv: Sequence[str] | None = None) -> None:
    """Predict, choose and draw."""
    parser = Parser(__doc__)
    parser.add_argument(
        '--model',
        nargs='+',
        action='append',
        required=True,
        dest='models',
        metavar='WORD',
        help='CONFIG CHECKPOINT [OUTPUT,OUTPUT]: a model, and which of its outputs to show; '
        'default: all. May be repeated',
    )
    frames = parser.add_mutually_exclusive_group(required=True)
    frames.add_argument(
        '--frames', nargs='+', metavar='NAME', help='names of images, without folder and ending'
    )
    frames.add_argument(
        '--most-different',
        type=at_least(1),
        metavar='K',
        help='the K frames with the largest disagreement',
    )
    parser.add_argument(
        '--between',
        nargs=2,
        metavar='OUTPUT',
        help='the two networks to compare; default: the first two of the first model with several, '
        'or else of the first two models',
    )
    parser.share('--out', required=True, metavar='DIR')
    parser.share('--force')
    parser.add_argument(
        '--columns', type=at_least(1), default=4, help='panels in a row; default: 4'
    )
    parser.add_argument(
        '--panel-width',
        type=at_least(1),
        default=640,
        metavar='PIXELS',
        help='wider panels are shrunk to it; default: 640',
    )
    parser.share('--device', '--optimize', '--dtype', '--cfg-options')
    args = parser.parse_args(argv)
    for words in args.models:
        if not 2 <= len(words) <= 3:
            parser.error(
                f'--model takes CONFIG CHECKPOINT [OUTPUT,OUTPUT], not {" ".join(words)!r}'
            )

    from mmseg_coop.analysis.compare import compare_predictions

    compare_predictions(**vars(args))


if __name__ == '__main__':
    program(main)
