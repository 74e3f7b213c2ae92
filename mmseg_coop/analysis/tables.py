"""What tables are read from and written as: metafiles, Markdown, CSV."""

from __future__ import annotations

import csv
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
