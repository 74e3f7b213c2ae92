"""What the tools write: files that overwrite nothing, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from ..apis.model import refuse_existing

matplotlib.use('Agg')  # no display is needed
import matplotlib.pyplot as plt  # reads the backend when it is imported

plt.rcParams.update(
    {
        'axes.axisbelow': True,  # grids stay behind the bars
        'axes.spines.top': False,
        'axes.spines.right': False,
        'font.size': 9,
        'savefig.dpi': 150,
    }
)


def claim(*paths: str | Path | None, force: bool) -> None:
    """Make the folders of files that are going to be written, see :func:`refuse_existing`."""
    refuse_existing(*paths, force=force)
    for path in paths:
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)


def grouped_bars(
    axis: Any,
    bars: Mapping[str, Sequence[float] | np.ndarray],
    names: Sequence[str],
    *,
    horizontal: bool = False,
) -> None:
    """Draw a group of bars at every name, one of each series, whose labels are the keys."""
    width = 0.8 / len(bars)
    for index, (label, values) in enumerate(bars.items()):
        places = np.arange(len(names)) + (index - (len(bars) - 1) / 2) * width
        (axis.barh if horizontal else axis.bar)(places, values, width, label=label)
    (axis.set_yticks if horizontal else axis.set_xticks)(range(len(names)), names)
    (axis.set_ylim if horizontal else axis.set_xlim)(-0.6, len(names) - 0.4)  # also without values


def save(figure: Any, path: Path) -> None:
    """Write a figure and let go of it."""
    figure.savefig(path)
    plt.close(figure)
