"""Writes what a study has measured: means over seeds, paired differences, costs, charts."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import torch

from ..errors import DataError
from .measure import describe
from .report import plt, save
from .study import Run, Study
from .study_costs import COLUMNS, costs_of, draw_costs, seconds_per_iteration
from .tables import latex, markdown, spread, text_of, write_csv
from .validations import FILE_NAME

NOTE = """\
mIoU in percent, mean ± sample standard deviation over seeds; differences are taken seed by seed.
val is the best validation of a run, by the output that its config chooses, test its checkpoint's.
results.csv has the figures of every run and class, with the file in which each stands.
Costs are of the networks that an output needs, for one image of the training's size, measured on
{device};
s/iteration is the median of the row's trainings, beside whatever ran at the same time.
"""
#: mIoU by row, output and split, then by seed.
Values = dict[tuple[str, str, str], dict[int, float]]


def write_results(study: Study, out: Path, device: torch.device) -> None:
    """Write and print ``results.{md,csv,tex,png}`` and ``costs.png`` of the finished runs."""
    values: Values = defaultdict(dict)
    chosen, seconds, costs, figures = {}, {}, {}, []
    for row in study.rows:
        runs = [run for run in (Run(row, seed) for seed in study.seeds) if is_finished(run)]
        for run in runs:
            assert run.best
            chosen[row.label] = run.best['output']
            files = (run.folder / FILE_NAME, run.folder / 'test' / FILE_NAME)
            for line, file in zip((run.best, *run.tests[-1:]), files, strict=False):
                for output, figure in line['outputs'].items():
                    about = row.label, output, line['split']
                    values[about][run.seed] = figure['mIoU']
                    iou = dict(zip(line['classes'], figure['IoU'], strict=True))
                    facts = (run.seed, run.best['iteration'], figure['mIoU'])
                    figures.append((*about, *facts, iou, file))
        if runs:
            seconds[row.label] = seconds_per_iteration(runs)
            outputs = dict.fromkeys(key[1] for key in values if key[0] == row.label)
            costs[row.label] = costs_of(row, outputs, device)
    if not figures:
        return
    splits = [split for split in ('val', 'test') if any(key[2] == split for key in values)]
    names = list(dict.fromkeys(key[:2] for key in values))
    reference = chosen.get(study.compare, '')
    rows = [['row', 'output', 'runs']]
    for split in splits:
        rows[0] += [f'{split} mIoU', f'difference to {study.compare} ({reference})']
    rows[0] += [*COLUMNS, 's/iteration']
    for label, output in names:
        rows.append([label, output, str(len(values[label, output, 'val']))])
        for split in splits:
            own = values.get((label, output, split), {})
            to = values.get((study.compare, reference, split), {})
            pairs = [own[seed] - to[seed] for seed in own if seed in to and own is not to]
            sign = '+' if pairs and statistics.mean(pairs) > 0 else ''
            rows[-1] += [text_of(list(own.values()), 2), sign + text_of(pairs, 2)]
        cost = costs[label][output]
        rows[-1] += [f'{cost[name]:.2f}' for name in COLUMNS] + [f'{seconds[label]:.2f}']
    right = range(2, len(rows[0]))
    note = NOTE.format(device=describe(device))
    text = f'# {study.title}\n\n{markdown(rows, right)}\n\n{note}'
    (out / 'results.md').write_text(text, 'utf-8')
    (out / 'results.tex').write_text(latex(rows, right), 'utf-8')
    classes = dict.fromkeys(name for *_, iou, _ in figures for name in iou)
    header = ('row', 'output', 'split', 'seed', 'iteration', 'mIoU', *classes, 'file')
    lines = ((*f[:6], *(f[6].get(name) for name in classes), f[7]) for f in figures)
    write_csv(out / 'results.csv', (header, *lines))
    draw_results(study.title, values, out / 'results.png')
    points = {
        label: (costs[label][output]['GMAC'], list(values[label, output, splits[-1]].values()))
        for label, output in chosen.items()
        if (label, output, splits[-1]) in values
    }
    draw_costs(study.title, points, splits[-1], out / 'costs.png')
    print(f'{text}\nfiles: {out}/results.md, .csv, .tex, .png, costs.png')


def is_finished(run: Run) -> bool:
    """Whether a run has all its validations; what is damaged is said."""
    try:
        run.read()
    except DataError as error:
        print(f'note: {error}', file=sys.stderr)
    return bool(run.checkpoint and run.best)


def draw_results(title: str, values: Values, out: Path) -> None:
    """Draw a bar a row and output, with its spread and a point a seed; a panel a split."""
    splits = list(dict.fromkeys(key[2] for key in values))
    names = list(dict.fromkeys(key[:2] for key in values))
    size = 1 + 6 * len(splits), 1.2 + 0.3 * len(names)
    figure, axes = plt.subplots(
        1, len(splits), figsize=size, layout='constrained', squeeze=False, sharey=True
    )
    figure.suptitle(title)
    for axis, split in zip(axes[0], splits, strict=True):
        drawn = {y: list(values.get((*name, split), {}).values()) for y, name in enumerate(names)}
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
    save(figure, out)
