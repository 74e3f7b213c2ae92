"""What cooperation does in a trained model, on one page.

Measures the mIoU of every output with the paths of one site switched off, and of all: how far the
trained networks rely on them, which is not how they would do if trained without. Then how alike the
networks' features are at each site before and after the exchange, and what each network gains over
the other in each class.

The likeness is linear CKA (Kornblith et al., ICML 2019, section 3): 1 for features equal up to
rotation and scale, 0 for features without common linear part. Each sampled position of each image
is one example; with fewer examples than channels it is biased towards 1, which a star marks.

Writes cooperation.png, cooperation.md, and the tables as sites.csv, cka.csv and classes.csv.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import EVALUATION, Parser, at_least, program


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = Parser(__doc__)
    parser.share(*EVALUATION)
    parser.add_argument(
        '--cka-positions',
        type=at_least(1),
        default=64,
        metavar='N',
        help='of every image; default: 64',
    )
    args = parser.parse_args(argv)

    from mmseg_coop.analysis.cooperation import analyze_cooperation

    analyze_cooperation(**vars(args))


if __name__ == '__main__':
    program(main)
