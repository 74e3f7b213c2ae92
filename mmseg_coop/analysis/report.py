"""What the tools of this folder share: CSV, files that overwrite nothing, pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

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


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write a table."""
    with path.open('w', newline='') as file:
        csv.writer(file).writerows(rows)


def claim(*paths: Path, force: bool) -> None:
    """Make the folders of files that are going to be written.

    Args:
        *paths: The files.
        force: Whether they may replace others.

    Raises:
        FileExistsError: One of them is there already.
    """
    for path in paths:
        if path.is_dir() or (path.exists() and not force):
            raise FileExistsError(
                f'{str(path)!r} exists; add --force to replace it, or name another place.'
            )
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)


def save(figure: Any, path: Path) -> None:
    """Write a figure and let go of it."""
    figure.savefig(path)
    plt.close(figure)
