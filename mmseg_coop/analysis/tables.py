"""What tables are read from and written as: metafiles, Markdown, CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml


def read_models(metafiles: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the models of metafiles, each with its file."""
    for metafile in metafiles:
        for model in yaml.safe_load(metafile.read_text('utf-8'))['Models']:
            yield metafile, model


def markdown(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> str:
    """Lay out a table whose first row is the header; ``right`` are columns aligned to the right."""
    rule = ['---:' if column in right else '---' for column in range(len(rows[0]))]
    return '\n'.join(f'| {" | ".join(row)} |' for row in (rows[0], rule, *rows[1:]))


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table."""
    with path.open('w', encoding='utf-8', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows(rows)


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation, None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def text_of(values: Sequence[float], digits: int, *, count: bool = False) -> str:
    """Mean, spread and perhaps number of measured values, one a run; empty without values."""
    if not values:
        return ''
    text, deviation = f'{statistics.mean(values):.{digits}f}', spread(values)
    if deviation is not None:
        text += f' ± {deviation:.{digits}f}' + (f' (n = {len(values)})' if count else '')
    return text


def latex(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> str:
    """Lay out a table as :func:`markdown` does, for LaTeX with its package ``booktabs``."""
    special = str.maketrans({**{char: f'\\{char}' for char in '%&_#$'}, '±': r'$\pm$'})
    lines = [' & '.join(cell.translate(special) for cell in row) + r' \\' for row in rows]
    columns = ''.join('r' if column in right else 'l' for column in range(len(rows[0])))
    body = ('\\toprule', lines[0], '\\midrule', *lines[1:], '\\bottomrule')
    return '\n'.join((f'\\begin{{tabular}}{{{columns}}}', *body, '\\end{tabular}', ''))
