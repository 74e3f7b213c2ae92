"""Counts and draws the confusion matrix of every output of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..apis.model import choose_outputs
from .evaluate import class_iou, evaluate, open_subject
from .report import claim, plt, save
from .tables import markdown, write_csv

#: Up to this many classes each cell of the figure shows its number.
MAX_NUMBERED = 25
SHARES = dict(label='of the pixels of a class', prediction='of the pixels predicted as a class')


def confusion_matrix(
    config: str,
    checkpoint: str,
    *,
    split: str = 'test',
    max_images: int | None = None,
    normalize: str = 'label',
    out: str | None = None,
    force: bool = False,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Write the confusion matrix of every output as CSV and figure, and print the scores.

    Args:
        config: Config file.
        checkpoint: Checkpoint file.
        split: Data to evaluate it on. Defaults to ``'test'``.
        max_images: Stop after that many images. Defaults to None: all.
        normalize: What sums to 100 % in the figure, a key of ``SHARES``. Defaults to ``'label'``.
        out: Folder. Defaults to None: ``confusion_matrix`` in the work directory of the config.
        force: Whether to replace files. Defaults to False.
        **options: As of :func:`open_subject`.

    Returns:
        Counts ``(K, K)`` by output, labels as rows and predictions as columns.

    Raises:
        CoopError: The config, the data, the weights or the device do not fit.
        OSError: A file does not exist or cannot be read, or would be replaced.
    """
    subject = open_subject(config, checkpoint, split=split, **options)
    folder = Path(out or Path(subject.cfg.work_dir, 'confusion_matrix'))
    files = [f'{name}.{kind}' for name in choose_outputs(subject.model) for kind in ('csv', 'png')]
    claim(*(folder / file for file in files), force=force)
    matrices = evaluate(subject, max_images, f'{split} data')
    rows = [['output', 'pixels', 'aAcc', 'mIoU', 'most frequent confusion (label as prediction)']]
    for name, matrix in matrices.items():
        counts = [[c, *row] for c, row in zip(subject.classes, matrix.tolist(), strict=True)]
        write_csv(folder / f'{name}.csv', [['label \\ prediction', *subject.classes], *counts])
        iou = class_iou(matrix)
        miou, count = f'{np.nanmean(iou):.2f}', np.count_nonzero(~np.isnan(iou))
        if count < len(iou):
            miou += f' ({count} of {len(iou)} classes)'
        title = f'{name}: mIoU {miou}'
        draw(matrix, subject.classes, title, normalize, folder / f'{name}.png')
        wrong = matrix - np.diag(np.diag(matrix))
        worst = np.unravel_index(wrong.argmax(), wrong.shape)
        accuracy = f'{100 * np.trace(matrix) / max(1, matrix.sum()):.2f}'
        confused = ' as '.join(subject.classes[index] for index in worst)
        rows.append([name, str(matrix.sum()), accuracy, miou, confused])
    print(f'{markdown(rows)}\n\nwritten to {folder}')
    return matrices


def normalized(matrix: np.ndarray, by: str) -> np.ndarray:
    """Counts ``(K, K)`` as shares in percent; NaN for a class that never occurs."""
    with np.errstate(invalid='ignore'):
        return 100 * matrix / matrix.sum(axis=1 if by == 'label' else 0, keepdims=True)


def draw(matrix: np.ndarray, classes: list[str], title: str, by: str, path: Path) -> None:
    """Draw the shares of a matrix ``(K, K)`` of counts."""
    shares = normalized(matrix, by)
    side = 3 + 0.42 * len(classes)
    figure, axis = plt.subplots(figsize=(side + 0.8, side), layout='constrained')
    image = axis.imshow(shares, cmap='Blues', vmin=0, vmax=100)
    axis.spines[:].set_visible(False)
    axis.set_xticks(range(len(classes)), classes, rotation=90)
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel='prediction', ylabel='label', title=title)
    figure.colorbar(image, label=f'% {SHARES[by]}', shrink=0.8)
    if len(classes) <= MAX_NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.05:
                color = 'white' if share > 60 else 'black'
                text = f'{share:.1f}'
                axis.text(column, row, text, ha='center', va='center', color=color, fontsize=7)
    save(figure, path)
