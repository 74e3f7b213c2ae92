"""Sets measured figures beside those that the papers print, table by table."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..engine.config_text import read_config
from ..errors import ConfigError, DataError, did_you_mean
from .report import claim, plt, save
from .tables import markdown, read_models, spread, text_of, write_csv
from .validations import FILE_NAME, STUDY_RECORD, best_of, read_evaluations, standing_validations

NOT_RUN = 'not run'
COLORS = dict(paper='#9a9a9a', measured='#0072b2')


def paper_tables(
    work_dirs: Sequence[str] = (),
    *,
    root: Path,
    tables: str = 'all',
    csv: str | None = None,
    png: str | None = None,
    force: bool = False,
    unfinished: bool = False,
    server: Sequence[str] = (),
) -> None:
    """Print the tables of the papers with the figures of runs.

    Args:
        work_dirs: Where runs have written, or studies, whose runs are meant. Folders that hold no
            run of a row are left out with a line. Defaults to none.
        root: The folder with the project's ``configs`` and ``tools``.
        tables: A paper, see ``paper_tables.yml``. Defaults to ``'all'``.
        csv: File that gets one line a figure. Defaults to None.
        png: File that gets a bar chart of mIoU. Defaults to None.
        force: Whether to replace files. Defaults to False.
        unfinished: Whether to take runs that are not finished as well. Defaults to False.
        server: ``CONFIG=MIOU`` each, as a test server has measured it. Defaults to none.

    Raises:
        ConfigError: A run is given twice, or a server's figure belongs to no row.
        DataError: Results are damaged, from several runs or not the last.
        OSError: There is no such run, or a file would be replaced.
    """
    claim(csv, png, force=force)
    known = read_tables(root)
    seen = set()
    for work_dir in (folder for name in work_dirs for folder in run_folders(Path(name))):
        if work_dir.resolve() in seen:
            raise ConfigError(f'work dir {str(work_dir)!r} is given twice.')
        seen.add(work_dir.resolve())
        reason = why_foreign(work_dir, {row.config for _, row in filled(known)})
        if reason:
            print(f'note: {work_dir} is left out: {reason}', file=sys.stderr)
        else:
            fill(known, read_best(work_dir, unfinished=unfinished), work_dir)
    fill_server(known, server)
    for table in known:  # rows that the paper does not have and nobody has run
        table.rows = [row for row in table.rows if row.printed or row.measured['mIoU']]
    chosen = [table for table in known if tables in ('all', table.paper)]
    if csv:
        write_csv(Path(csv), csv_rows(chosen))
    if png:
        draw([table for table in chosen if not table.quantities], Path(png))
    print(page(chosen))


@dataclass
class Row:
    """A row of a table; the fields are explained in ``paper_tables.yml``."""

    cells: list[str]
    config: str | None = None
    output: str | None = None
    printed: Any = None  #: by quantity (one of the table's, or name of a class), once it is read
    derivation: str | None = None
    note: str | None = None
    IoU: Sequence[float] = ()
    #: Figures of each run, by quantity.
    measured: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class Table:
    """A table of a paper; the fields are explained in ``paper_tables.yml``."""

    paper: str
    heading: str  #: title of the paper
    classes: dict[str, str]  #: headings by name of the class
    number: int
    title: str
    columns: list[str]
    rows: list[Any]
    further: Sequence[Any] = ()
    quantities: Sequence[str] = ()
    dataset: str | None = None
    server: bool = False
    note: str | None = None

    @property
    def per_class(self) -> bool:
        """Whether the classes have columns."""
        return any(row.IoU for row in self.rows)

    def label(self, row: Row) -> str:
        """Name of a row in one line."""
        cells = zip(self.columns, row.cells, strict=True)
        words = [column if cell == 'yes' else cell for column, cell in cells]
        return ', '.join(word for word in words if word) or 'none'


def read_tables(root: Path) -> list[Table]:
    """Read the tables of all papers, without measured figures; further rows included."""
    data = yaml.safe_load((root / 'tools/analysis_tools/paper_tables.yml').read_text('utf-8'))
    results = {
        (model['Name'], result['Dataset']): result
        for _, model in read_models(root.glob('configs/*/metafile.yml'))
        for result in model.get('Results', [])
        if result['Source'] in ('paper', 'derived')
    }
    tables = []
    for paper, content in data['papers'].items():
        for entry in content['tables']:
            classes = data['classes'].get(entry.get('classes'), {})
            table = Table(paper, content['title'], **{**entry, 'classes': classes})
            rows = [Row(**row) for row in table.rows]
            for row in rows:
                known = results.get((row.config, table.dataset), {})
                if row.printed is None and known:
                    # `mIoU` alone: the paper does not say of which network it is.
                    metrics = known['Metrics']
                    row.printed = metrics.get(f'{row.output} mIoU', metrics.get('mIoU'))
                    row.derivation = known.get('Derivation')
            table.rows = [*rows, *(Row(**row) for row in table.further)]
            for row in table.rows:
                figures = dict(zip(classes, row.IoU, strict=bool(row.IoU)))
                if table.quantities:
                    figures.update(zip(table.quantities, row.printed, strict=True))
                elif row.printed is not None:
                    figures['mIoU'] = row.printed
                row.printed = figures
            tables.append(table)
    return tables


def run_folders(work_dir: Path) -> list[Path]:
    """The folders of the runs of a study, or the folder itself."""
    is_study = (work_dir / STUDY_RECORD).is_file()
    return sorted(work_dir.glob('*/seed_*')) if is_study else [work_dir]


def why_foreign(work_dir: Path, configs: Iterable[str | None]) -> str | None:
    """Say why a folder holds no run of any of the configs, None if it does."""
    if work_dir.is_dir() and not (work_dir / FILE_NAME).is_file():
        return f'it holds no {FILE_NAME}.'
    validations = read_evaluations(work_dir)
    if not validations:
        return f'its {FILE_NAME} holds no validation.'
    config = validations[-1]['config']
    if config in configs:
        return None
    hint = did_you_mean(config, filter(None, configs), ' Did you mean {}?')
    return f'no table has a row for config {config!r}.{hint}'


def read_best(work_dir: Path, *, unfinished: bool) -> dict[str, Any]:
    """Read the best validation of a run, which may have iterations to go if ``unfinished``."""
    standing = standing_validations(work_dir)
    last = standing[-1]
    end = last_iteration(work_dir / f'{last["config"]}.py')
    if end is not None and last['iteration'] < end:
        progress = f'{work_dir}: validated at iteration {last["iteration"]} of {end}'
        if not unfinished:
            raise DataError(
                f'{progress}, so the run is not finished. Resume it, or take it as it is with '
                '--unfinished.'
            )
        print(f'note: {progress}', file=sys.stderr)
    return best_of(standing)


def last_iteration(config: Path) -> int | None:
    """Length of a run from the config in its work dir, of which nothing is run; None if unknown."""
    if not config.is_file():
        return None
    try:
        train_cfg = read_config(config.read_text('utf-8', errors='replace')).get('train_cfg')
    except ValueError as error:
        raise DataError(
            f'{config} is not the config that a run leaves in its work dir: it {error}. Put that '
            'one back, or remove the file if the run is finished.'
        ) from None
    iterations = train_cfg.get('max_iters') if isinstance(train_cfg, dict) else None
    return iterations if isinstance(iterations, int) else None


def filled(tables: Iterable[Table]) -> list[tuple[Table, Row]]:
    """The rows that runs fill, each with its table."""
    return [(table, row) for table in tables if not table.server for row in table.rows]


def fill(tables: Iterable[Table], best: dict[str, Any], work_dir: Path) -> None:
    """Put the figures of a run, its best validation, into the rows that it belongs to."""
    config, classes, outputs = (best[key] for key in ('config', 'classes', 'outputs'))
    for table, row in filled(tables):
        if row.config != config:
            continue
        lacking, unknown = {*table.classes} - {*classes}, {*classes} - {*table.classes}
        if lacking or unknown:
            raise DataError(
                f'{work_dir}: the classes of the run ({config}) are not those of table '
                f'{table.number}: lacking {sorted(lacking)}, unknown {sorted(unknown)}. Was it run '
                'on other data?'
            )
        output = outputs.get(row.output or best['output'])
        if output is None:
            raise DataError(
                f'{work_dir}: table {table.number} needs output {row.output!r} of {config}, but '
                f'the run has {sorted(outputs)}.'
            )
        row.measured['mIoU'].append(output['mIoU'])
        for name, value in zip(classes, output['IoU'], strict=True):
            if value is not None:  # null: the class occurs nowhere
                row.measured[name].append(value)


def fill_server(tables: Iterable[Table], results: Iterable[str]) -> None:
    """Put the figures of a test server, ``CONFIG=MIOU``, into the rows that they belong to."""
    rows = {row.config: row for table in tables if table.server for row in table.rows if row.config}
    for result in results:
        config, _, text = result.partition('=')
        value = float(text) if text.replace('.', '', 1).isdecimal() else math.nan
        if config not in rows or not 0 <= value <= 100:
            raise ConfigError(
                f'--server takes CONFIG=MIOU in percent with one of the configs '
                f'{", ".join(rows)}, not {result!r}.'
            )
        rows[config].measured['mIoU'].append(value)


def measured_text(row: Row) -> str:
    """The measured mIoU of a row, or why there is none."""
    return text_of(row.measured['mIoU'], 2, count=True) or NOT_RUN if row.config else '-'


def printed_text(row: Row, key: str = 'mIoU') -> str:
    """The paper's figure, `-` where it has none."""
    return f'{row.printed.get(key, "-")}{" (derived)" if row.derivation else ""}'


def body(table: Table) -> Iterator[list[str]]:
    """Header and rows of a table."""
    if table.quantities:
        yield [*table.columns, *(f'{name}, paper' for name in table.quantities)]
        for row in table.rows:
            yield [*row.cells, *(printed_text(row, name) for name in table.quantities)]
    elif not table.per_class:
        yield [*table.columns, 'mIoU (%), paper', 'mIoU (%), measured']
        for row in table.rows:
            yield [*row.cells, printed_text(row), measured_text(row)]
    else:
        yield [*table.columns, '', *table.classes.values(), 'Mean IoU']
        for row in table.rows:
            if row.printed:
                figures = [printed_text(row, name) for name in (*table.classes, 'mIoU')]
                yield [*row.cells, 'paper', *figures]
            missing = '-' if row.measured['mIoU'] else ''
            figures = [text_of(row.measured[name], 1) or missing for name in table.classes]
            yield [*row.cells, 'measured', *figures, measured_text(row)]


def page(tables: Iterable[Table]) -> str:
    """All tables as Markdown."""
    lines: list[str] = []
    for heading, group in itertools.groupby(tables, lambda table: table.heading):
        lines += [f'# {heading}', '']
        for table in group:
            rows = list(body(table))
            left = len(table.columns) + table.per_class
            lines += [f'## Table {table.number}. {table.title}', '']
            lines += [markdown(rows, range(left, len(rows[0]))), '']
            for row in table.rows:
                derived = f'{row.printed["mIoU"]} = {row.derivation}' if row.derivation else None
                notes = filter(None, (derived, row.note))
                lines += [f'- {table.label(row)}: {note}.' for note in notes]
            if table.note:
                lines.append(f'- {table.note}')
            if table.server:
                lines.append(
                    '- Only the server measures this table: give its figure with --server.'
                )
            lines += [''] if lines[-1] else []
    return '\n'.join(lines).rstrip()


def csv_rows(tables: Iterable[Table]) -> Iterator[Sequence[Any]]:
    """All figures, one a line; measured is the mean of the runs."""
    names = ('paper', 'table', 'row', 'config', 'output', 'quantity', 'printed', 'derivation')
    yield (*names, 'measured', 'std', 'runs')
    for table, row in [(each, row) for each in tables for row in each.rows]:
        about = (table.paper, table.number, table.label(row), row.config, row.output)
        for key in table.quantities or ['mIoU', *(table.classes if table.per_class else ())]:
            values = row.measured[key]
            mean, deviation = statistics.mean(values) if values else None, spread(values)
            measured = [None if x is None else round(x, 4) for x in (mean, deviation)]
            yield (*about, key, row.printed.get(key), row.derivation, *measured, len(values))


def draw(tables: Sequence[Table], path: Path) -> None:
    """Draw the mIoU of every row of every table as bars, measured beside printed."""
    counts = [len(table.rows) for table in tables]
    figure, axes = plt.subplots(
        len(tables),
        figsize=(11, 0.5 + 0.9 * len(tables) + 0.45 * sum(counts)),
        squeeze=False,
        height_ratios=[count + 1 for count in counts],
        layout='constrained',
    )
    for table, axis in zip(tables, axes[:, 0], strict=True):
        drawn: list[float] = []
        for y, row in enumerate(table.rows):
            printed, values = row.printed.get('mIoU'), row.measured['mIoU']
            if printed is not None:
                axis.barh(y - 0.2, printed, 0.38, color=COLORS['paper'])
                axis.text(printed, y - 0.2, f' {printed_text(row)}', va='center', fontsize=8)
                drawn.append(printed)
            if values:
                mean, deviation = statistics.mean(values), spread(values)
                axis.barh(y + 0.2, mean, 0.38, xerr=deviation, color=COLORS['measured'], capsize=3)
                end, text = mean + (deviation or 0), f' {measured_text(row)}'
                axis.text(end, y + 0.2, text, va='center', fontsize=8)
                drawn.append(mean)
            elif row.config is not None:
                edge = axis.get_yaxis_transform()
                axis.text(0, y + 0.2, f' {NOT_RUN}', transform=edge, va='center', fontsize=8)
        # Rows differ by a few percent: bars from zero would all look alike.
        start = max(0, 10 * math.floor((min(drawn) - 10) / 10))
        axis.set(
            title=f'{table.paper}, table {table.number}: {table.title}',
            xlabel=f'mIoU (%), axis from {start}',
            xlim=(start, max(drawn) + 0.2 * (max(drawn) - start)),
            ylim=(len(table.rows) - 0.4, -0.6),
            yticks=range(len(table.rows)),
            yticklabels=[table.label(row) for row in table.rows],
        )
    handles = [plt.Rectangle((0, 0), 1, 1, color=c, label=name) for name, c in COLORS.items()]
    figure.legend(handles=handles, loc='outside upper right', ncols=len(handles))
    save(figure, path)
