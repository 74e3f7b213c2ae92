"""Print a config as the runner sees it: bases merged, options of the command line applied."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mmseg_coop_cli import Parser, ending, program


def main(argv: Sequence[str] | None = None) -> None:
    """Print."""
    parser = Parser(__doc__)
    parser.share('config')
    parser.add_argument('--key', metavar='KEY', help='print this part only, e.g. model.decode_head')
    parser.add_argument(
        '--diff', metavar='CONFIG', help='print only the lines in which this other config differs'
    )
    parser.share(
        '--out',
        type=ending('.py', '.json', '.yml', '.yaml'),
        metavar='FILE',
        help='write a config file (.py, .json, .yml) instead',
    )
    parser.share('--force', '--cfg-options')
    args = parser.parse_args(argv)
    if args.out is not None and (args.key or args.diff):
        parser.error('--out writes the whole config; leave out --key and --diff')

    from mmseg_coop.analysis.configs import print_config

    sys.exit(1 if print_config(**vars(args)) else 0)


if __name__ == '__main__':
    program(main)
