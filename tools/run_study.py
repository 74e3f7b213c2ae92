"""Run a study: rows of a table with several seeds each, several runs at once.

docs/studies.md explains the YAML file. Finished runs are not run again and broken ones go on
exactly, so the same command goes on after any end. Tables and a chart show means and deviations
over the seeds, and differences to a row.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from mmseg_coop_cli import Parser, at_least, program


def main(argv: Sequence[str] | None = None) -> None:
    """Run a study."""
    parser = Parser(__doc__)
    parser.add_argument('study', help='YAML file, or the name of a study of the project')
    parser.share('--out', help='folder of the study; default: work_dirs/NAME_OF_STUDY')
    parser.add_argument('--rows', nargs='+', metavar='LABEL', help='rows to run; default: all')
    parser.add_argument(
        '--seeds', nargs='+', type=int, metavar='N', help='seeds; default: those of the study'
    )
    parser.add_argument(
        '--iterations',
        type=at_least(1),
        metavar='N',
        help="length of every run, with its schedule; default: the study's, or else the configs'",
    )
    parser.share('--jobs', help='runs at once, which share the cores; default: 1')
    parser.share('--device', choices=['cpu'], help='keep off the GPU')
    parser.add_argument(
        '--test',
        action='store_true',
        help='evaluate the checkpoint that val has chosen on the test split, once and for all',
    )
    parser.share('--cfg-options')
    args = parser.parse_args(argv)

    from mmseg_coop.analysis.study_queue import run_study

    # Whoever ends a study in the background ends its runs as well, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_study(**vars(args), root=Path(__file__).resolve().parents[1])


if __name__ == '__main__':
    program(main)
