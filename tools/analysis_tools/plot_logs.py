"""Curves of one or several runs in one figure: loss, learning rate and the mIoU of every output.

Reads the scalars.json files that mmengine writes below the work directory. A resumed run has one
for every start; they are joined, and where they overlap the later start counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import Parser, at_least, ending, program


def main(argv: Sequence[str] | None = None) -> None:
    """Read, draw, print."""
    parser = Parser(__doc__)
    parser.add_argument(
        'runs', nargs='+', metavar='RUN', help='work directories or scalars.json files'
    )
    parser.share(
        '--out',
        type=ending('.png'),
        default='curves.png',
        metavar='PNG',
        help='default: curves.png',
    )
    parser.share('--force')
    parser.add_argument(
        '--names', nargs='+', metavar='NAME', help='names of the runs; default: of their folders'
    )
    parser.add_argument(
        '--losses', action='store_true', help="also every network's losses, not only their sum"
    )
    parser.add_argument(
        '--smooth',
        type=at_least(1),
        default=1,
        metavar='N',
        help='draw means of N successive logged losses; default: 1',
    )
    args = parser.parse_args(argv)
    if args.names is not None and len(args.names) != len(args.runs):
        parser.error(f'--names takes one name a run: {len(args.runs)}, not {len(args.names)}')

    from mmseg_coop.analysis.curves import plot_logs

    plot_logs(**vars(args))


if __name__ == '__main__':
    program(main)
