"""The tables of the papers, measured beside printed, from the work directories of finished runs.

A run's figures are those of its best validation, by mIoU of the chosen output, as they stand in
iou.jsonl (`RecordIoUHook` of the default runtime writes it); the name of its config decides which
rows it fills. Several runs of one config, such as seeds, give mean and sample standard deviation.
Rows, headings and figures per class are in paper_tables.yml, the papers' mIoU in the metafiles.
`derived` marks a figure that the paper's text leads to but that is printed nowhere in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmseg_coop_cli import Parser, program


def main(argv: Sequence[str] | None = None) -> None:
    """Read, print and write."""
    parser = Parser(__doc__)
    parser.add_argument('work_dirs', nargs='*', metavar='WORK_DIR', help='where a run has written')
    parser.add_argument(
        '--tables',
        choices=['cross-coop', 'dpanet', 'all'],
        default='all',
        help='tables of cross cooperative learning, of DPANet, or all; default: all',
    )
    parser.add_argument('--csv', metavar='FILE', help='also write one line a figure')
    parser.add_argument('--png', metavar='FILE', help='also draw a bar chart of mIoU')
    parser.share('--force')
    parser.add_argument(
        '--unfinished', action='store_true', help='take runs that are not finished as well'
    )
    parser.add_argument(
        '--server',
        action='append',
        default=[],
        metavar='CONFIG=MIOU',
        help="what the Cityscapes server measured with a config's submission, for table 2 of "
        'DPANet, e.g. dpanet_r101-d8_1xb8-112k_cityscapes-768x768=70.1; may be repeated',
    )
    args = parser.parse_args(argv)
    if args.csv is not None and args.csv == args.png:
        parser.error('--csv and --png name the same file')

    from mmseg_coop.analysis.paper_tables import paper_tables

    paper_tables(**vars(args), root=Path(__file__).resolve().parents[2])


if __name__ == '__main__':
    program(main)
