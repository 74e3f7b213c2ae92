"""Draws the curves of one or several runs in one figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from ..errors import DataError
from .report import claim, plt, save
from .tables import markdown

STYLES = ('-', '--', ':', '-.')
MIOU = 'mIoU'

#: Values by step, of every name.
Curves = dict[str, dict[int, float]]


def plot_logs(
    runs: Sequence[str],
    *,
    out: str = 'curves.png',
    force: bool = False,
    names: Sequence[str] | None = None,
    losses: bool = False,
    smooth: int = 1,
) -> None:
    """Draw loss, learning rate and the mIoU of every output, and print the last and the best.

    Args:
        runs: Work directories or ``scalars.json`` files.
        out: File to write. Defaults to ``'curves.png'``.
        force: Whether to replace it. Defaults to False.
        names: Names of the runs. Defaults to None: of their folders.
        losses: Whether to draw every network's losses. Defaults to False: only their sum.
        smooth: How many successive logged losses to draw the means of. Defaults to 1.

    Raises:
        DataError: A file is no log, or holds neither losses nor mIoU.
        OSError: There is no such run, or a file would be replaced.
    """
    claim(out, force=force)
    if names is None:
        paths = [Path(run).resolve() for run in runs]
        names = [path.name if path.is_dir() else path.parts[-3] for path in paths]
    if len(set(names)) < len(names):
        names = runs
    curves = {name: read_run(Path(run)) for name, run in zip(names, runs, strict=True)}
    draw(curves, losses, smooth, Path(out))
    print(f'{summary(curves)}\n\ncurves: {out}')


def read_run(run: Path) -> Curves:
    """Read the scalars of a run, which is its work directory or a ``scalars.json`` file."""
    if not run.exists():
        raise FileNotFoundError(f'{str(run)!r} does not exist.')
    files = [run] if run.is_file() else sorted(run.glob('**/vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(
            f'{str(run)!r} has no vis_data/scalars.json; give the work directory of a training '
            'whose visualizer has a LocalVisBackend.'
        )
    curves: Curves = {}
    for file in files:
        for number, line in enumerate(file.read_text('utf-8').splitlines()):
            try:
                scalars = json.loads(line)
                step = int(scalars.pop('step'))
            except (ValueError, KeyError, AttributeError):
                raise DataError(
                    f'line {number + 1} of {str(file)!r} is no scalars of mmengine.'
                ) from None
            if number == 0:
                # A start may repeat an evaluation and not the iteration before it: what is as old
                # as its first line is replaced name by name.
                for name, values in curves.items():
                    curves[name] = {old: x for old, x in values.items() if old <= step}
            for name, value in scalars.items():
                curves.setdefault(name, {})[step] = float(value)
    if not any(name == 'loss' or name.endswith(MIOU) for name in curves):
        raise DataError(f'{str(run)!r} holds neither a loss nor an mIoU.')
    return {name: values for name, values in curves.items() if values}


def outputs(curves: Curves) -> dict[str, str]:
    """Names in the log of every output's mIoU; without named outputs, of the only one."""
    named = {name.removesuffix(f'/{MIOU}'): name for name in curves if name.endswith(f'/{MIOU}')}
    return named or (dict(prediction=MIOU) if MIOU in curves else {})


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of each value and those before it, up to `width` of them."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw(runs: Mapping[str, Curves], losses: bool, smooth: int, path: Path) -> None:
    """Draw the panels: a colour a run, or, with one run, a colour a curve."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout='constrained')
    for index, (run, curves) in enumerate(runs.items()):
        parts = [name for name in curves if '.' in name and 'loss' in name] if losses else []
        panels: list[dict[str, str]] = [
            {name: name for name in ('loss', *parts) if name in curves},
            {name: name for name in ('lr', 'base_lr') if name in curves},
            outputs(curves),
        ]
        for axis, names in zip(axes, panels, strict=True):
            for number, ((title, name), style) in enumerate(
                zip(names.items(), cycle(STYLES), strict=False)
            ):
                steps, values = list(curves[name]), np.array(list(curves[name].values()))
                axis.plot(
                    steps,
                    smoothed(values, smooth) if axis is axes[0] else values,
                    style,
                    color=f'C{(index if len(runs) > 1 else number) % 10}',
                    marker='.' if len(steps) < 50 else '',
                    label=title if len(runs) == 1 else f'{run}: {title}',
                )
    for axis, title in zip(axes, ('loss', 'learning rate', 'mIoU (%)'), strict=True):
        axis.set(title=title, xlabel='iteration')
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    if axes[0].lines:
        axes[0].set_ylim(bottom=0)
    save(figure, path)


def summary(runs: Mapping[str, Curves]) -> str:
    """Table of the last loss and the best mIoU of every output."""
    rows = [['run', 'iterations', 'last loss', 'output', 'best mIoU', 'at', 'last mIoU']]
    for run, curves in runs.items():
        last = max(step for values in curves.values() for step in values)
        loss = list(curves.get('loss', {}).values())
        head = [run, str(last), f'{loss[-1]:.4f}' if loss else '-']
        for output, name in outputs(curves).items():
            values = curves[name]
            best = max(values, key=lambda step: values[step])
            score = f'{values[best]:.2f}', str(best), f'{list(values.values())[-1]:.2f}'
            rows.append([*head, output, *score])
        if not outputs(curves):
            rows.append([*head, '-', '-', '-', '-'])
    return markdown(rows)
