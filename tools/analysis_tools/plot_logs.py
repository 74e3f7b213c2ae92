"""Curves of one or several runs in one picture: loss, learning rate and the mIoU of every output.

Reads the scalars.json files that mmengine writes below the work directory. A resumed run has one
for every start; they are joined, and where they overlap the later start counts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from mmseg_coop.analysis.report import claim, plt, save
from mmseg_coop.analysis.tables import markdown
from mmseg_coop_cli import short_errors

STYLES = ('-', '--', ':', '-.')
MIOU = 'mIoU'

#: Values by step, of every name.
Curves = dict[str, dict[int, float]]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'runs', nargs='+', type=Path, metavar='RUN', help='work directories or scalars.json files'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('curves.png'), metavar='PNG', help='default: curves.png'
    )
    parser.add_argument('--force', action='store_true', help='replace a file that exists')
    parser.add_argument(
        '--names', nargs='+', metavar='NAME', help='names of the runs; default: of their folders'
    )
    parser.add_argument(
        '--losses', action='store_true', help="also every network's losses, not only their sum"
    )
    parser.add_argument(
        '--smooth',
        type=int,
        default=1,
        metavar='N',
        help='draw means of N successive logged losses; default: 1',
    )
    args = parser.parse_args()
    if args.names is not None and len(args.names) != len(args.runs):
        parser.error(f'--names takes one name a run: {len(args.runs)}, not {len(args.names)}')
    if args.smooth < 1:
        parser.error(f'--smooth has to be at least 1, not {args.smooth}')
    if args.out.suffix != '.png':
        parser.error(f'--out takes the name of a .png file, not {str(args.out)!r}')
    return args


def read_run(run: Path) -> Curves:
    """Read the scalars of a run.

    Args:
        run: Its work directory, or a scalars.json file.

    Raises:
        FileNotFoundError: There is no run.
        ValueError: A file is no log, or holds neither losses nor mIoU.
    """
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
        start: int | None = None
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                scalars = json.loads(line)
                step = int(scalars.pop('step'))
            except (ValueError, KeyError, AttributeError):
                raise ValueError(
                    f'line {number} of {str(file)!r} is no scalars of mmengine.'
                ) from None
            if start is None:
                start = step
                # A start may repeat an evaluation and not the iteration before it: what is as old
                # as its first line is replaced name by name.
                for values in curves.values():
                    for old in [old for old in values if old > start]:
                        del values[old]
            for name, value in scalars.items():
                curves.setdefault(name, {})[step] = float(value)
    if not any(name == 'loss' or name.endswith(MIOU) for name in curves):
        raise ValueError(f'{str(run)!r} holds neither a loss nor an mIoU.')
    return curves


def outputs(curves: Curves) -> dict[str, str]:
    """Names in the log of every output's mIoU; without named outputs, of the only one."""
    named = {name.removesuffix(f'/{MIOU}'): name for name in curves if name.endswith(f'/{MIOU}')}
    return named or ({'prediction': MIOU} if MIOU in curves else {})


def smoothed(values: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Mean of each value and those before it, up to `width` of them."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw(runs: dict[str, Curves], losses: bool, smooth: int, path: Path) -> None:
    """Draw the panels.

    Args:
        runs: Curves by name of the run.
        losses: Whether to draw every network's losses.
        smooth: Over how many logged losses to take means.
        path: File to write.
    """
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout='constrained')
    for index, (run, curves) in enumerate(runs.items()):
        color = f'C{index % 10}'
        kinds = ['loss']
        if losses:
            kinds += [name for name in curves if '.' in name and 'loss' in name]
        panels = (
            (axes[0], {name: name for name in kinds if name in curves}),
            (axes[1], {name: name for name in ('lr', 'base_lr') if name in curves}),
            (axes[2], outputs(curves)),
        )
        for axis, names in panels:
            for number, (title, name) in enumerate(names.items()):
                steps, values = list(curves[name]), np.array(list(curves[name].values()))
                if axis is axes[0]:
                    values = smoothed(values, smooth)
                label = title if len(runs) == 1 else f'{run}: {title}'
                axis.plot(
                    steps,
                    values,
                    STYLES[number % len(STYLES)],
                    color=color if len(runs) > 1 else f'C{number % 10}',
                    marker='.' if len(steps) < 50 else '',
                    label=label,
                )
    for axis, title in zip(axes, ('loss', 'learning rate', 'mIoU (%)'), strict=True):
        axis.set_title(title)
        axis.set_xlabel('iteration')
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    if axes[0].lines:
        axes[0].set_ylim(bottom=0)
    save(figure, path)


def summary(runs: dict[str, Curves]) -> str:
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


def main() -> None:
    """Read, draw, print."""
    args = parse_args()
    with short_errors():
        claim(args.out, force=args.force)
        names = args.names or [
            run.resolve().name if run.is_dir() else run.resolve().parts[-3] for run in args.runs
        ]
        if len(set(names)) < len(names):
            names = [str(run) for run in args.runs]
        runs = {name: read_run(run) for name, run in zip(names, args.runs, strict=True)}
    draw(runs, args.losses, args.smooth, args.out)
    print(summary(runs))
    print(f'\ncurves: {args.out}')


if __name__ == '__main__':
    main()
