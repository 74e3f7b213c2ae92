"""Writes what a study has measured: means over seeds, paired differences, costs, charts."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import image_size, load_config
from ..engine.hooks.checkpoint_hook import write_atomically
from ..errors import DataError
from ..models.cooperation import resolve_topology
from .benchmark import Subject, give_networks
from .flops import count
from .measure import describe, interleaved_seconds
from .report import plt, save
from .study import Row, Run, Study, training_logs
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
#: What an output costs, one image at a time.
COLUMNS = ('parameters (M)', 'GMAC', 'inference (ms)')
ROUNDS = 9
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
            logs = [log for run in runs for log in training_logs(run.folder)]
            times = [line['time'] for log in logs for line in log]  # none if a run is very short
            seconds[row.label] = statistics.median(times or [math.nan])
            outputs = dict.fromkeys(key[1] for key in values if key[0] == row.label)
            costs[row.label] = costs_of(row, outputs, device)
    if not figures:
        return
    splits = [split for split in ('val', 'test') if any(key[2] == split for key in values)]
    names = list(dict.fromkeys(key[:2] for key in values))
    reference = chosen.get(study.compare, '')
    rows = [['row', 'output', 'runs']]
    for split in splits:
        rows[0] += [f'{split} mIoU']
        rows[0] += [f'difference to {study.compare} ({reference})'] if reference else []
    rows[0] += [*COLUMNS, 's/iteration']
    for label, output in names:
        rows.append([label, output, str(len(values[label, output, 'val']))])
        for split in splits:
            own = values.get((label, output, split), {})
            to = values.get((study.compare, reference, split), {})
            pairs = [own[seed] - to[seed] for seed in own if seed in to and own is not to]
            sign = '+' if pairs and statistics.mean(pairs) > 0 else ''
            rows[-1] += [text_of(list(own.values()), 2)]
            rows[-1] += [sign + text_of(pairs, 2)] if reference else []
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
    figure.suptitle(f'{title}: mean, standard deviation and every seed')
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


def costs_of(row: Row, outputs: Iterable[str], device: torch.device) -> dict[str, dict[str, float]]:
    """Count and time the networks that a row's outputs need, one image at a time.

    What was measured before is read from a file in the row's folder.

    Returns:
        The values of ``COLUMNS``, by output.
    """
    file = row.folder / 'costs.json'
    known = json.loads(file.read_text('utf-8')) if file.is_file() else {}
    for output in outputs:
        place = f'{output}, {device.type}'
        if place not in known:
            cfg = load_config(row.config, cfg_options=row.options)
            keep_needed(cfg.model, output)
            size = image_size(cfg)
            subject = Subject(cfg, (1, *size), device=device)
            seconds = interleaved_seconds({'': subject.forward()}, repeats=ROUNDS, device=device)
            total = count(subject.model, size)['total']
            values = total['params'], total['gmac'], statistics.median(seconds['']) * 1000
            known[place] = dict(zip(COLUMNS, values, strict=True))
            write_atomically(json.dumps(known, indent=2).encode(), file)
    return {output: known[f'{output}, {device.type}'] for output in outputs}


def keep_needed(model: dict[str, Any], output: str) -> None:
    """Leave only the networks that an output comes from: its own, and all that send to it."""
    networks = model['backbone'].get('networks', {})
    if output not in networks:  # the ensemble, or a model of one network
        return
    head = model['decode_head']
    senders = resolve_topology(head.get('topology', 'cross'), list(networks))
    needed = [output]
    for receiver in needed:  # it grows meanwhile
        needed += [sender for sender in senders.get(receiver, ()) if sender not in needed]
    give_networks(model, {name: name for name in networks if name in needed})
    head['topology'] = {name: senders[name] for name in needed if name in senders} or 'none'
    head.pop('transfer', None)
    model.pop('auxiliary_head', None)


def draw_costs(
    title: str, points: Mapping[str, tuple[float, Sequence[float]]], split: str, out: Path
) -> None:
    """Draw mIoU of rows against their operations; points are GMAC and the mIoU of every seed."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout='constrained')
    drawn = Counter[str]()
    for label, (gmac, seeds) in points.items():
        beside = 1 + 0.02 * drawn[f'{gmac:.3g}']  # rows of equal cost stand side by side
        drawn[f'{gmac:.3g}'] += 1
        mean = statistics.mean(seeds)
        axis.errorbar(gmac * beside, mean, yerr=spread(seeds), fmt='o', capsize=3, label=label)
    figure.legend(loc='outside right upper', frameon=False)
    axis.set(title=f'{title}: mean and standard deviation')
    axis.set(xlabel='GMAC an image', ylabel=f'{split} mIoU (%)')
    axis.margins(x=0.25, y=0.15)
    save(figure, out)
