"""Go through all files of a config's data before a training does.

Checks for every split that each image and label can be read, that they are of one size and that the
labels are single-channel maps of the classes, that each class occurs in training unless no pixel
is ignored there (masks saved as 0 and 255), and reduce_zero_label. Prints how often each class
occurs, draws it as a histogram, and ends with a table of what is wrong and exit code 1, or with
exit code 0.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mmseg_coop_cli import Parser, at_least, ending, program

SPLITS = ('train', 'val', 'test')


def main(argv: Sequence[str] | None = None) -> None:
    """Check, print, draw."""
    parser = Parser(__doc__)
    parser.share('config')
    parser.add_argument(
        '--splits', nargs='+', choices=SPLITS, default=SPLITS, help='default: all of the config'
    )
    parser.share(
        '--out',
        type=ending('.png'),
        metavar='PNG',
        help='histogram of the classes; default: check_dataset.png in the work directory',
    )
    parser.share('--json', '--force')
    parser.add_argument(
        '--show',
        type=at_least(0),
        default=20,
        metavar='N',
        help='rows of problems; 0: all; default: 20',
    )
    parser.add_argument(
        '--workers',
        type=at_least(1),
        default=min(8, os.cpu_count() or 1),
        help='threads that read files; default: %(default)s',
    )
    parser.share('--cfg-options')
    args = parser.parse_args(argv)

    from mmseg_coop.analysis.check_dataset import check_dataset

    sys.exit(1 if check_dataset(**vars(args)) else 0)


if __name__ == '__main__':
    program(main)
