"""The tables of the papers, measured beside printed, from the work directories of finished runs.

A run's figures are those of its best validation, by mIoU of the chosen output, as they stand in
iou.jsonl (`RecordIoUHook` of the default runtime writes it); the name of its config decides which
rows it fills. Several runs of one config, such as seeds, give mean and sample standard deviation.
Rows, headings and figures per class are in paper_tables.yml, the papers' mIoU in the metafiles.
`derived` marks a figure that the paper's text leads to but that is printed nowhere in it.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import io
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmseg_coop.analysis.tables import markdown, read_models

ROOT = Path(__file__).resolve().parents[2]
FILE_NAME = 'iou.jsonl'
NOT_RUN = 'not run'
KEYS = ('split', 'iteration', 'config', 'seed', 'output', 'classes', 'outputs')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'work_dirs', nargs='*', type=Path, metavar='WORK_DIR', help='where a run has written'
    )
    parser.add_argument(
        '--tables',
        choices=['cross-coop', 'dpanet', 'all'],
        default='all',
        help='tables of cross cooperative learning, of DPANet, or all; default: all',
    )
    parser.add_argument('--csv', type=Path, metavar='FILE', help='also write one line a figure')
    parser.add_argument('--png', type=Path, metavar='FILE', help='also draw a bar chart of mIoU')
    parser.add_argument('--force', action='store_true', help='overwrite the files of --csv, --png')
    parser.add_argument(
        '--unfinished',
        action='store_true',
        help='take runs that are not finished as well',
    )
    parser.add_argument(
        '--server',
        action='append',
        default=[],
        metavar='CONFIG=MIOU',
        help="what the Cityscapes server measured with a config's submission, for table 2 of "
        'DPANet, e.g. dpanet_r101-d8_1xb8-112k_cityscapes-768x768=70.1; may be repeated',
    )
    args = parser.parse_args()
    if args.csv is not None and args.csv == args.png:
        parser.error('--csv and --png name the same file')
    return args


@dataclass
class Run:
    """The best validation of a run.

    Attributes:
        work_dir: Where the run has written.
        config: Name of its config.
        classes: Names of the classes.
        chosen: The output that chose the best validation.
        outputs: ``mIoU`` and ``IoU`` of every output, in percent.
    """

    work_dir: Path
    config: str
    classes: list[str]
    chosen: str
    outputs: dict[str, dict[str, Any]]


@dataclass
class Row:
    """A row of a table.

    Attributes:
        cells: What stands in its first columns.
        config: Name of the config that runs it; None for another author's method.
        output: Output whose figure it is; None for the chosen one.
        printed: The paper's figure for each quantity (one of the table's, or name of a class).
        measured: Those of each run.
        derivation: How the figure is derived from the paper's text; None if the paper prints it.
        note: What to know about the paper's figures.
    """

    cells: list[str]
    config: str | None
    output: str | None
    printed: dict[str, float]
    measured: dict[str, list[float]]
    derivation: str | None
    note: str | None

    @property
    def notes(self) -> list[str]:
        """What to say below the table."""
        derived = f'{self.printed["mIoU"]} = {self.derivation}' if self.derivation else None
        return [note for note in (derived, self.note) if note]


@dataclass
class Table:
    """A table of a paper.

    Attributes:
        paper: Key of the paper.
        number: Its number there.
        title: What it shows.
        columns: Headings of the rows' cells.
        quantities: Headings of the figures, where they are not mIoU. Such are not measured here.
        classes: Headings by name of the class.
        per_class: Whether the classes have columns.
        server: Whether a server measures it.
        rows: The rows.
        note: What to know about the table.
    """

    paper: str
    number: int
    title: str
    columns: list[str]
    quantities: list[str]
    classes: dict[str, str]
    per_class: bool
    server: bool
    rows: list[Row]
    note: str | None

    def label(self, row: Row) -> str:
        """Name of a row in one line."""
        cells = zip(self.columns, row.cells, strict=True)
        words = [column if cell == 'yes' else cell for column, cell in cells]
        return ', '.join(word for word in words if word) or 'none'


def read_lines(work_dir: Path) -> list[dict[str, Any]]:
    """Read the validations of a run, oldest first.

    Args:
        work_dir: Where the run has written.

    Returns:
        The lines of ``iou.jsonl`` whose split is ``val``.

    Raises:
        ValueError: There are none, or a line is broken.
    """
    file = work_dir / FILE_NAME
    if not work_dir.is_dir():
        raise ValueError(f'work dir {str(work_dir)!r} does not exist.')
    if not file.is_file():
        raise ValueError(
            f'{work_dir} holds no results: there is no {FILE_NAME}. RecordIoUHook writes it when '
            'a run with CoopIoUMetric is validated; both are in the shipped configs.'
        )
    validations = []
    for number, text in enumerate(file.read_text('utf-8', errors='replace').splitlines(), start=1):
        try:
            line = json.loads(text)
            missing = [key for key in KEYS if key not in line]
            if missing:
                raise ValueError(f'it lacks {", ".join(missing)}')
            for name, output in line['outputs'].items():
                if len(output['IoU']) != len(line['classes']) or not math.isfinite(output['mIoU']):
                    raise ValueError(f'output {name!r} has not one IoU a class')
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f'line {number} of {file} is cut short or damaged ({error}). Was the run stopped '
                'while it wrote? Remove the line, and resume the run if it is not finished.'
            ) from None
        if line['split'] == 'val' and line['iteration'] is not None:  # of a training
            validations.append(line)
    if not validations:
        raise ValueError(f'{file} holds no validation, hence no results; train with validation.')
    return validations


def read_run(work_dir: Path, *, unfinished: bool) -> Run:
    """Read the best validation of a run.

    Args:
        work_dir: Where it has written.
        unfinished: Whether it may still have iterations to go.

    Returns:
        The run.

    Raises:
        ValueError: There are no results, they are damaged, from several runs or from one that has
            not reached its end.
    """
    validations = read_lines(work_dir)
    first = validations[0]
    for line, after in itertools.pairwise(validations):
        # A resumed run may get another seed and go back a little; another run starts again.
        restart = line['seed'] != after['seed'] and after['iteration'] <= first['iteration']
        if restart or line['config'] != after['config']:
            raise ValueError(
                f'{work_dir / FILE_NAME} holds several runs: {line["config"]} with seed '
                f'{line["seed"]}, then {after["config"]} with seed {after["seed"]}. Give each run '
                'a work dir of its own.'
            )
    validations = standing(validations)
    last = validations[-1]
    end = last_iteration(work_dir / f'{last["config"]}.py')
    if end is not None and last['iteration'] < end:
        progress = f'{work_dir}: validated at iteration {last["iteration"]} of {end}'
        if not unfinished:
            raise ValueError(
                f'{progress}, so the run is not finished. Resume it, or take it as it is with '
                '--unfinished.'
            )
        print(f'note: {progress}', file=sys.stderr)
    for line in validations:
        if line.get('images_left_out'):
            raise ValueError(
                f'{work_dir / FILE_NAME}: the validation at iteration {line["iteration"]} left out '
                f'{line["images_left_out"]} images, so it is not that of the papers. Restore the '
                'files and evaluate again.'
            )
        if line['output'] not in line['outputs']:
            raise ValueError(f'{work_dir / FILE_NAME}: no figures of output {line["output"]!r}.')
    best = max(validations, key=lambda line: line['outputs'][line['output']]['mIoU'])
    return Run(work_dir, best['config'], best['classes'], best['output'], best['outputs'])


def standing(validations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what a resumed run has evaluated again, since it went on from before.

    Args:
        validations: Lines of one run, oldest first.

    Returns:
        Those left, of rising iterations.
    """
    left: list[dict[str, Any]] = []
    for line in validations:
        left = [before for before in left if before['iteration'] < line['iteration']]
        left.append(line)
    return left


def last_iteration(config: Path) -> int | None:
    """Length of a run from the config that it left in its work dir, None where it cannot be told.

    Args:
        config: The file.

    Returns:
        Its ``train_cfg.max_iters``.

    Raises:
        ValueError: It is not what a run leaves. Nothing of it is run.
    """
    if not config.is_file():
        return None
    from mmseg_coop.engine.config_text import read_config  # slow, hence only where it is needed

    try:
        train_cfg = read_config(config.read_text('utf-8', errors='replace')).get('train_cfg')
    except ValueError as error:
        raise ValueError(
            f'{config} is not the config that a run leaves in its work dir: it {error}. Put that '
            'one back, or remove the file if the run is finished.'
        ) from None
    iterations = train_cfg.get('max_iters') if isinstance(train_cfg, dict) else None
    return iterations if isinstance(iterations, int) else None


def paper_results() -> dict[tuple[str, str], dict[str, Any]]:
    """The papers' results in the metafiles, by name of the config and data set."""
    results = {}
    for _, model in read_models(ROOT.glob('configs/*/metafile.yml')):
        for result in model.get('Results', []):
            if result['Source'] in ('paper', 'derived'):
                results[model['Name'], result['Dataset']] = result
    return results


def read_data() -> dict[str, Any]:
    """Read paper_tables.yml."""
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix('.yml').read_text('utf-8'))
    return data


def read_tables() -> list[Table]:
    """Read the tables of all papers, without measured figures; further rows included."""
    data = read_data()
    results = paper_results()
    tables = []
    for paper, content in data['papers'].items():
        for entry in content['tables']:
            classes = data['classes'].get(entry.get('classes'), {})
            quantities = entry.get('quantities', [])
            rows = []
            for row in (*entry['rows'], *entry.get('further', ())):
                config, output = row.get('config'), row.get('output')
                printed, derivation = row.get('printed'), row.get('derivation')
                known = results.get((config, entry.get('dataset')))
                if printed is None and known and row in entry['rows']:
                    # `mIoU` alone: the paper does not say of which network it is.
                    metrics = known['Metrics']
                    printed = metrics.get(f'{output} mIoU', metrics.get('mIoU'))
                    derivation = known.get('Derivation')
                figures = dict(zip(quantities, printed, strict=True)) if quantities else {}
                if not quantities and printed is not None:
                    figures['mIoU'] = printed
                if 'IoU' in row:
                    figures.update(zip(classes, row['IoU'], strict=True))
                rows.append(
                    Row(
                        cells=row['cells'],
                        config=config,
                        output=output,
                        printed=figures,
                        measured={key: [] for key in ('mIoU', *classes)},
                        derivation=derivation,
                        note=row.get('note'),
                    )
                )
            tables.append(
                Table(
                    paper=paper,
                    number=entry['number'],
                    title=entry['title'],
                    columns=entry['columns'],
                    quantities=quantities,
                    classes=classes,
                    per_class=any('IoU' in row for row in entry['rows']),
                    server=entry.get('server', False),
                    rows=rows,
                    note=entry.get('note'),
                )
            )
    return tables


def fill(tables: Iterable[Table], run: Run) -> None:
    """Put the figures of a run into the rows that it belongs to.

    Args:
        tables: The tables of all papers.
        run: The run.

    Raises:
        ValueError: It belongs to no row, or it does not fit the row.
    """
    rows = [(table, row) for table in tables if not table.server for row in table.rows]
    configs = {row.config for _, row in rows if row.config}
    if run.config not in configs:
        similar = difflib.get_close_matches(run.config, configs, n=1)
        hint = f' Did you mean {similar[0]}?' if similar else ''
        raise ValueError(
            f'{run.work_dir}: no table has a row for config {run.config!r}; leave it out.{hint}'
        )
    for table, row in rows:
        if row.config != run.config:
            continue
        if set(run.classes) != set(table.classes):
            lacking = sorted(set(table.classes) - set(run.classes))
            unknown = sorted(set(run.classes) - set(table.classes))
            raise ValueError(
                f'{run.work_dir}: the classes of the run ({run.config}) are not those of table '
                f'{table.number}: lacking {lacking}, unknown {unknown}. Was it run on other data?'
            )
        output = run.outputs.get(row.output or run.chosen)
        if output is None:
            raise ValueError(
                f'{run.work_dir}: table {table.number} needs output {row.output!r} of '
                f'{run.config}, but the run has {sorted(run.outputs)}.'
            )
        row.measured['mIoU'].append(output['mIoU'])
        for name, value in zip(run.classes, output['IoU'], strict=True):
            if value is not None:  # null: the class occurs nowhere
                row.measured[name].append(value)


def fill_server(tables: Iterable[Table], results: Iterable[str]) -> None:
    """Put the figures of a test server into the rows that they belong to.

    Args:
        tables: The tables of all papers.
        results: ``CONFIG=MIOU`` each.

    Raises:
        ValueError: Not of that form, or no table has such a row.
    """
    rows = {row.config: row for table in tables if table.server for row in table.rows if row.config}
    for result in results:
        config, _, text = result.partition('=')
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if config not in rows or not 0 <= value <= 100:
            raise ValueError(
                f'--server takes CONFIG=MIOU in percent with one of the configs '
                f'{", ".join(rows)}, not {result!r}.'
            )
        rows[config].measured['mIoU'].append(value)


def drop_empty_rows(table: Table) -> None:
    """Drop the rows that the paper does not have and nobody has run."""
    table.rows = [row for row in table.rows if row.printed or row.measured['mIoU']]


def spread(values: list[float]) -> float | None:
    """Sample standard deviation, None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def text_of(values: list[float], digits: int, *, count: bool = False) -> str:
    """Mean and spread of measured values for a table.

    Args:
        values: One value a run.
        digits: Digits after the point.
        count: Whether to add the number of runs.

    Returns:
        The text, empty without values.
    """
    if not values:
        return ''
    text = f'{statistics.mean(values):.{digits}f}'
    deviation = spread(values)
    if deviation is not None:
        text += f' ± {deviation:.{digits}f}' + (f' (n = {len(values)})' if count else '')
    return text


def measured_text(row: Row) -> str:
    """The measured mIoU of a row, or why there is none."""
    if row.config is None:
        return '-'
    return text_of(row.measured['mIoU'], 2, count=True) or NOT_RUN


def printed_text(row: Row, key: str = 'mIoU') -> str:
    """The paper's figure, `-` where it has none."""
    return f'{row.printed.get(key, "-")}{" (derived)" if row.derivation else ""}'


def body(table: Table) -> Iterator[list[str]]:
    """Header and rows of a table."""
    if table.quantities:
        yield [*table.columns, *(f'{name}, paper' for name in table.quantities)]
        for row in table.rows:
            yield [*row.cells, *(printed_text(row, name) for name in table.quantities)]
        return
    if not table.per_class:
        yield [*table.columns, 'mIoU (%), paper', 'mIoU (%), measured']
        for row in table.rows:
            yield [*row.cells, printed_text(row), measured_text(row)]
        return
    yield [*table.columns, '', *table.classes.values(), 'Mean IoU']
    for row in table.rows:
        if row.printed:
            printed = [printed_text(row, name) for name in table.classes]
            yield [*row.cells, 'paper', *printed, printed_text(row)]
        known = row.measured['mIoU']
        figures = [text_of(row.measured[name], 1) or '-' for name in table.classes]
        figures = figures if known else [''] * len(figures)
        yield [*row.cells, 'measured', *figures, measured_text(row)]


def page(tables: Iterable[Table], titles: dict[str, str]) -> str:
    """All tables as Markdown.

    Args:
        tables: The tables.
        titles: Titles of the papers.

    Returns:
        The text.
    """
    lines: list[str] = []
    paper = None
    for table in tables:
        if table.paper != paper:
            paper = table.paper
            lines += [f'# {titles[paper]}', '']
        rows = list(body(table))
        left = len(table.columns) + table.per_class
        lines += [f'## Table {table.number}. {table.title}', '']
        lines += [markdown(rows, range(left, len(rows[0]))), '']
        lines += [f'- {table.label(row)}: {note}.' for row in table.rows for note in row.notes]
        if table.note:
            lines.append(f'- {table.note}')
        if table.server:
            lines.append('- Only the server measures this table: give its figure with --server.')
        lines += [''] if lines[-1] else []
    return '\n'.join(lines).rstrip()


def csv_text(tables: Iterable[Table]) -> str:
    """All figures as CSV, one a line; measured is the mean of the runs."""
    file = io.StringIO()
    names = ('paper', 'table', 'row', 'config', 'output', 'quantity', 'printed', 'derivation')
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow([*names, 'measured', 'std', 'runs'])
    for table in tables:
        for row in table.rows:
            about = (table.paper, table.number, table.label(row), row.config, row.output)
            keys = table.quantities or ['mIoU', *(table.classes if table.per_class else ())]
            for key in keys:
                values = row.measured.get(key, [])
                mean = round(statistics.mean(values), 4) if values else None
                deviation = spread(values)
                std = None if deviation is None else round(deviation, 4)
                figure = (key, row.printed.get(key), row.derivation)
                writer.writerow([*about, *figure, mean, std, len(values)])
    return file.getvalue()


def png_bytes(tables: list[Table]) -> bytes:
    """Bar chart of the mIoU of every row of every table, measured beside printed."""
    from matplotlib.figure import Figure  # needed by few, hence not above
    from matplotlib.patches import Patch

    tables = [table for table in tables if not table.quantities]
    colors = dict(paper='#9a9a9a', measured='#0072b2')
    counts = [len(table.rows) for table in tables]
    height = 0.5 + 0.9 * len(tables) + 0.45 * sum(counts)
    figure = Figure(figsize=(11, height), layout='constrained')
    ratios = [count + 1 for count in counts]
    axes = figure.subplots(len(tables), squeeze=False, height_ratios=ratios)[:, 0]
    for table, axis in zip(tables, axes, strict=True):
        drawn: list[float] = []
        for y, row in enumerate(table.rows):
            printed, values = row.printed.get('mIoU'), row.measured['mIoU']
            if printed is not None:
                axis.barh(y - 0.2, printed, 0.38, color=colors['paper'])
                axis.text(printed, y - 0.2, f' {printed_text(row)}', va='center', fontsize=8)
                drawn.append(printed)
            if values:
                mean, deviation = statistics.mean(values), spread(values)
                axis.barh(y + 0.2, mean, 0.38, xerr=deviation, color=colors['measured'], capsize=3)
                end = mean + (deviation or 0)
                axis.text(end, y + 0.2, f' {measured_text(row)}', va='center', fontsize=8)
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
        axis.spines[['top', 'right']].set_visible(False)
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc='outside upper right', ncols=len(handles))
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=120)
    return file.getvalue()


def check_outputs(files: Iterable[Path | None], *, force: bool) -> None:
    """Refuse files that cannot be written or are there already.

    Args:
        files: The files; None is passed over.
        force: Whether they may be there.

    Raises:
        ValueError: One of them is there, or its folder is not.
    """
    for file in files:
        if file is None:
            continue
        if not file.parent.is_dir():
            raise ValueError(f'folder {str(file.parent)!r} for {file.name!r} does not exist.')
        if file.is_dir() or (file.exists() and not force):
            raise ValueError(f'{str(file)!r} exists; choose another name or add --force.')


def collect(args: argparse.Namespace) -> list[Table]:
    """Read the runs and put them into the tables.

    Args:
        args: The command line.

    Returns:
        The tables asked for.

    Raises:
        ValueError: A run or an option does not fit.
    """
    check_outputs((args.csv, args.png), force=args.force)
    tables = read_tables()
    seen: set[Path] = set()
    for work_dir in args.work_dirs:
        if work_dir.resolve() in seen:
            raise ValueError(f'work dir {str(work_dir)!r} is given twice.')
        seen.add(work_dir.resolve())
        fill(tables, read_run(work_dir, unfinished=args.unfinished))
    fill_server(tables, args.server)
    for table in tables:
        drop_empty_rows(table)
    return [table for table in tables if args.tables in ('all', table.paper)]


def main() -> None:
    """Read, print and write."""
    args = parse_args()
    try:
        tables = collect(args)
    except ValueError as error:
        sys.exit(f'error: {error}')
    titles = {key: paper['title'] for key, paper in read_data()['papers'].items()}
    if args.csv is not None:
        args.csv.write_text(csv_text(tables), 'utf-8')
    if args.png is not None:
        args.png.write_bytes(png_bytes(tables))
    print(page(tables, titles))


if __name__ == '__main__':
    main()
