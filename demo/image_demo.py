"""Segment an image, a folder or all files that match a pattern with a trained model.

For every image it writes one image: the input and every output (each network's and their ensemble)
laid over it, with a legend of the classes. Images are segmented whole, also where the config
evaluates a crop of the centre.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import PREDICTION, Parser, program


def main(argv: Sequence[str] | None = None) -> None:
    """Segment and draw."""
    parser = Parser(__doc__)
    parser.add_argument('images', help="an image, a folder, or a pattern in quotes: 'street/*.jpg'")
    parser.share(*PREDICTION)
    parser.share('--out', default='outputs', metavar='DIR', help='folder; default: outputs')
    parser.add_argument(
        '--labels', action='store_true', help='also write the label maps, as OUT/OUTPUT/NAME.png'
    )
    args = parser.parse_args(argv)

    from mmseg_coop.apis.predict import predict_images

    predict_images(**vars(args))


if __name__ == '__main__':
    program(main)
