"""Confusion matrix of every output of a trained model.

Counts the pairs of prediction and label that the evaluator itself compares, ignored pixels left
out, and writes for every output the counts as CSV (labels as rows, predictions as columns) and a
picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mmseg_coop.analysis.evaluate import add_arguments, class_iou, evaluate, load, parse
from mmseg_coop.analysis.report import claim, plt, save, write_csv
from mmseg_coop.analysis.tables import markdown
from mmseg_coop_cli import short_errors

#: Up to this many classes each cell of the picture shows its number.
MAX_NUMBERED = 25
SHARES = dict(label='of the pixels of a class', prediction='of the pixels predicted as a class')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        '--normalize',
        choices=list(SHARES),
        default='label',
        help='what the picture shows: label: every row sums to 100 %% and the diagonal is the '
        'recall; prediction: every column does and the diagonal is the precision; default: label',
    )
    return parse(parser)


def normalized(matrix: np.ndarray, by: str) -> np.ndarray:
    """Shares in percent; NaN for a class that never occurs.

    Args:
        matrix: Counts, ``(K, K)``.
        by: A key of ``SHARES``.
    """
    total = matrix.sum(axis=1 if by == 'label' else 0, keepdims=True)
    empty = np.full(matrix.shape, np.nan)
    return 100 * np.divide(matrix, total, out=empty, where=np.broadcast_to(total > 0, matrix.shape))


def draw(matrix: np.ndarray, classes: list[str], title: str, by: str, path: Path) -> None:
    """Draw a matrix.

    Args:
        matrix: Counts, ``(K, K)``.
        classes: Names of the classes.
        title: Headline.
        by: A key of ``SHARES``.
        path: File to write.
    """
    shares = normalized(matrix, by)
    side = 3 + 0.42 * len(classes)
    figure, axis = plt.subplots(figsize=(side + 0.8, side), layout='constrained')
    image = axis.imshow(shares, cmap='Blues', vmin=0, vmax=100)
    axis.spines[:].set_visible(False)
    axis.set_xticks(range(len(classes)), classes, rotation=90)
    axis.set_yticks(range(len(classes)), classes)
    axis.set_xlabel('prediction')
    axis.set_ylabel('label')
    axis.set_title(title)
    figure.colorbar(image, label=f'% {SHARES[by]}', shrink=0.8)
    if len(classes) <= MAX_NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.05:
                color = 'white' if share > 60 else 'black'
                axis.text(column, row, f'{share:.1f}', ha='center', va='center', color=color,
                          fontsize=7)  # fmt: skip
    save(figure, path)


def main() -> None:
    """Count, print, write."""
    args = parse_args()
    with short_errors():
        subject = load(args)
        out_dir = args.out_dir or Path(subject.cfg.work_dir, 'confusion_matrix')
        names = getattr(subject.model, 'output_names', ('prediction',))
        files = {name: (out_dir / f'{name}.csv', out_dir / f'{name}.png') for name in names}
        claim(*(path for pair in files.values() for path in pair), force=args.force)
    matrices = evaluate(subject, args.max_images, f'{args.split} data')
    rows = [['output', 'pixels', 'aAcc', 'mIoU', 'most frequent confusion (label as prediction)']]
    for name, matrix in matrices.items():
        table, picture = files[name]
        header = ['label \\ prediction', *subject.classes]
        write_csv(
            table,
            [header, *([c, *row.tolist()] for c, row in zip(subject.classes, matrix, strict=True))],
        )
        iou = class_iou(matrix)
        miou, count = f'{np.nanmean(iou):.2f}', np.count_nonzero(~np.isnan(iou))
        if count < len(iou):
            miou += f' ({count} of {len(iou)} classes)'
        draw(matrix, subject.classes, f'{name}: mIoU {miou}', args.normalize, picture)
        wrong = matrix - np.diag(np.diag(matrix))
        label, prediction = np.unravel_index(wrong.argmax(), wrong.shape)
        rows.append(
            [
                name,
                str(matrix.sum()),
                f'{100 * np.trace(matrix) / max(1, matrix.sum()):.2f}',
                miou,
                f'{subject.classes[label]} as {subject.classes[prediction]}',
            ]
        )
    print(markdown(rows))
    print(f'\nwritten to {out_dir}')


if __name__ == '__main__':
    main()
