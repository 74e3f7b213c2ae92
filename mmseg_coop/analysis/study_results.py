"""Writes what a study has measured: means over seeds, paired differences, a chart."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from ..errors import DataError
from .report import plt, save
from .study import Run, Study
from .tables import latex, markdown, spread, text_of, write_csv
from .validations import FILE_NAME

NOTE = """\
mIoU in percent, mean ± sample standard deviation over seeds; differences are taken seed by seed.
val is the best validation of a run, by the output that its config chooses, test its checkpoint's.
results.csv has the figures of every run and class, with the file in which each stands.
"""
#: mIoU by row, output and split, then by seed.
Values = dict[tuple[str, str, str], dict[int, float]]


def write_results(study: Study, out: Path) -> None:
    """Write ``results.{md,csv,tex,png}`` of the runs that are finished, and print the table."""
    values: Values = defaultdict(dict)
    reference, figures = '', []
    for run in [Run(row, seed) for row in study.rows for seed in study.seeds]:
        try:
            run.read()
        except DataError as error:
            print(f'note: {error}', file=sys.stderr)
        if not run.checkpoint or not run.best:
            continue
        if run.row.label == study.compare:
            reference = run.best['output']
        files = (run.folder / FILE_NAME, run.folder / 'test' / FILE_NAME)
        for line, file in zip((run.best, *run.tests[-1:]), files, strict=False):
            for output, figure in line['outputs'].items():
                about = run.row.label, output, line['split']
                values[about][run.seed] = figure['mIoU']
                iou = dict(zip(line['classes'], figure['IoU'], strict=True))
                figures.append((about, run.seed, run.best['iteration'], figure['mIoU'], iou, file))
    if not figures:
        return
    splits = [split for split in ('val', 'test') if any(key[2] == split for key in values)]
    names = list(dict.fromkeys(key[:2] for key in values))
    rows = [['row', 'output', 'runs']]
    for split in splits:
        rows[0] += [f'{split} mIoU', f'difference to {study.compare} ({reference})']
    for name in names:
        rows.append([*name, str(len(values[(*name, 'val')]))])
        for split in splits:
            own, to = values[(*name, split)], values[study.compare, reference, split]
            pairs = [own[seed] - to[seed] for seed in own if seed in to and own is not to]
            sign = '+' if pairs and statistics.mean(pairs) > 0 else ''
            rows[-1] += [text_of(list(own.values()), 2), sign + text_of(pairs, 2)]
    right = range(2, len(rows[0]))
    text = f'# {study.title}\n\n{markdown(rows, right)}\n\n{NOTE}'
    (out / 'results.md').write_text(text, 'utf-8')
    (out / 'results.tex').write_text(latex(rows, right), 'utf-8')
    classes = dict.fromkeys(name for *_, iou, _ in figures for name in iou)
    header = ('row', 'output', 'split', 'seed', 'iteration', 'mIoU', *classes, 'file')
    lines = ((*f[0], *f[1:4], *(f[4].get(name) for name in classes), f[5]) for f in figures)
    write_csv(out / 'results.csv', (header, *lines))

    size = 1 + 6 * len(splits), 1.2 + 0.3 * len(names)
    figure, axes = plt.subplots(
        1, len(splits), figsize=size, layout='constrained', squeeze=False, sharey=True
    )
    figure.suptitle(study.title)
    for axis, split in zip(axes[0], splits, strict=True):
        drawn = {y: list(values[(*name, split)].values()) for y, name in enumerate(names)}
        for y, seeds in drawn.items():
            if seeds:
                axis.barh(y, statistics.mean(seeds), xerr=spread(seeds), color='#9ecae1', capsize=3)
                axis.plot(seeds, [y] * len(seeds), '.', color='#08519c')
        shown = list(itertools.chain(*drawn.values()))
        margin = max(1.0, max(shown) - min(shown)) / 2  # rows differ by little
        start = max(0.0, min(shown) - margin)
        axis.set(xlim=(start, max(shown) + margin), ylim=(len(names) - 0.4, -0.6))
        axis.set(xlabel=f'{split} mIoU (%), axis from {start:.1f}')
        axis.set_yticks(list(drawn), [', '.join(name) for name in names])
    save(figure, out / 'results.png')
    print(f'{text}\nfiles: {out}/results.md, .csv, .tex, .png')
