"""Draws how time and memory grow with networks, pixels and classes."""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

from ..config import load_config
from ..errors import ConfigError
from .benchmark import MODES, Subject, give_networks
from .measure import describe, interleaved_seconds, peak_bytes, prepare
from .report import claim, plt, save
from .tables import markdown

#: What is varied, everything else as in the config.
NETWORKS = (1, 2, 3, 4)
#: By how much height and width are multiplied.
SIDES = ((1, 1), (1, 2), (2, 2), (2, 4))
CLASSES = (2, 21, 60, 100, 150)
UNITS = dict(time='ms', memory='MiB')
Points = list[tuple[float, float]]
#: Points by mode and quantity.
Curves = dict[tuple[str, str], Points]


def draw_growth(
    config: str,
    *,
    out: str,
    size: tuple[int, int] = (513, 513),
    batch_size: int = 2,
    repeats: int = 5,
    threads: int | None = None,
    device: str | None = None,
    force: bool = False,
) -> dict[str, Curves]:
    """Measure models that differ in one number, and draw it beside the straight lines.

    The networks are those of the config, taken in turn.

    Args:
        config: Config of a model with several networks.
        out: Chart to write.
        size: Height and width of the smallest images. Defaults to 513 x 513.
        batch_size: Images at a time. Defaults to 2.
        repeats: Timed rounds. Defaults to 5.
        threads: CPU threads. Defaults to None: torch's choice.
        device: Where the models run. Defaults to None: CUDA where there is one.
        force: Whether to replace the chart. Defaults to False.

    Returns:
        Points by what is varied and, below it, by mode and quantity.

    Raises:
        CoopError: The config is at fault or has no networks, or there is no such device.
        OSError: A file does not exist, or would be replaced.
    """
    claim(out, force=force)
    cfg, place = load_config(config), prepare(device, threads)
    if 'networks' not in cfg.model.get('backbone', {}):
        raise ConfigError(f'config {config!r} has no networks to vary; give one of a pair.')
    pair, (height, width) = len(cfg.model.backbone.networks), size
    varied: dict[str, dict[int, tuple[Config, tuple[int, int]]]] = dict(
        networks={n: (vary(cfg, n), size) for n in NETWORKS},
        pixels={h * w: (vary(cfg, pair), (h * height, w * width)) for h, w in SIDES},
        classes={n: (vary(cfg, pair, n), size) for n in CLASSES},
    )
    found = {}
    rows = [['varied', 'mode', 'quantity', 'line', 'furthest from it']]
    for what, settings in varied.items():
        subjects = {
            n: Subject(own, (batch_size, *sides), device=place)
            for n, (own, sides) in settings.items()
        }
        found[what] = _measure(subjects, repeats, place)
        for (mode, quantity), curve in found[what].items():
            slope, start, distance = straight_line(curve)
            line = f'{start:.4g} + {slope:.4g} x {UNITS[quantity]}'
            rows.append([what, mode, quantity, line, f'{distance:.1%}'])
    heading = f'{Path(config).stem}, {batch_size} x 3 x {height} x {width} and more'
    print(f'{heading}, median of {repeats} rounds\n{describe(place)}\n\n{markdown(rows)}')
    _draw(found, heading, Path(out))
    print(f'written to {out}')
    return found


def vary(cfg: Config, networks: int, num_classes: int | None = None) -> Config:
    """Give a config another number of networks, its own in turn, or of classes."""
    cfg = copy.deepcopy(cfg)
    names = zip(range(networks), itertools.cycle(cfg.model.backbone.networks))
    give_networks(cfg.model, {f'{name}{index}': name for index, name in names})
    cfg.model.decode_head.num_classes = num_classes or cfg.model.decode_head.num_classes
    return cfg


def straight_line(points: Points) -> tuple[float, float, float]:
    """Slope and start of the line through points, and how far one is from it, as a share of it."""
    x, y = np.array(points, dtype=float).T
    slope, start = np.polyfit(x, y, 1)
    line = start + slope * x
    return float(slope), float(start), float(np.abs(y / line - 1).max())


def _measure(subjects: Mapping[int, Subject], repeats: int, device: torch.device) -> Curves:
    curves: Curves = {}
    for mode in MODES:
        functions = {str(x): getattr(subject, mode)() for x, subject in subjects.items()}
        seconds = interleaved_seconds(functions, repeats=repeats, device=device)
        curves[mode, 'time'] = [(x, 1000 * statistics.median(seconds[str(x)])) for x in subjects]
        curves[mode, 'memory'] = [
            (x, peak_bytes(functions[str(x)], device) / 2**20) for x in subjects
        ]
    return curves


def _draw(found: Mapping[str, Curves], heading: str, out: Path) -> None:
    figure, axes = plt.subplots(
        len(UNITS), len(found), figsize=(9, 5.4), layout='constrained', squeeze=False
    )
    labels = dict(networks='networks', pixels='pixels (times the smallest)', classes='classes')
    for column, (what, curves) in enumerate(found.items()):
        for row, (quantity, unit) in enumerate(UNITS.items()):
            axis = axes[row, column]
            for color, mode in zip(('C0', 'C1'), MODES, strict=True):
                points = curves[mode, quantity]
                slope, start, distance = straight_line(points)
                x, y = np.array(points, dtype=float).T
                axis.plot(x, start + slope * x, color=color, linewidth=1, linestyle='--')
                axis.plot(x, y, 'o', color=color, label=f'{mode}, within {distance:.0%}')
            axis.set(xlim=(0, None), ylim=(0, None))
            axis.grid(alpha=0.3)
            axis.legend(frameon=False, fontsize=8)
            axes[row, 0].set_ylabel(f'{quantity} ({unit})')
        axes[-1, column].set_xlabel(labels[what])
    figure.suptitle(f'{heading}; dashed: straight lines')
    save(figure, out)
