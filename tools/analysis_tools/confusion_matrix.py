"""Confusion matrix of every output of a trained model.

Counts the pairs of prediction and label that the evaluator itself compares, ignored pixels left
out, and writes for every output the counts as CSV (labels as rows, predictions as columns) and a
figure.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import EVALUATION, Parser, program


def main(argv: Sequence[str] | None = None) -> None:
    """Count, draw, print."""
    parser = Parser(__doc__)
    parser.share(*EVALUATION)
    parser.add_argument(
        '--normalize',
        choices=['label', 'prediction'],
        default='label',
        help='what the figure shows: label: every row sums to 100 %% and the diagonal is the '
        'recall; prediction: every column does and the diagonal is the precision; default: label',
    )
    args = parser.parse_args(argv)

    from mmseg_coop.analysis.confusion import confusion_matrix

    confusion_matrix(**vars(args))


if __name__ == '__main__':
    program(main)
