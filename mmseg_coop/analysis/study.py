"""What a study is: rows of a table with several seeds, and runs as their folders show them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mmseg_coop_cli import CoopError

from ..config import load_config
from ..config.load import parse_options
from ..engine.hooks.checkpoint_hook import changes_of_config, write_atomically
from ..errors import ConfigError, first_few, printable
from .validations import FILE_NAME, STUDY_RECORD, best_of, read_evaluations, standing_validations

#: Keys of a study and of its rows, with the kinds of their values; these need not be there.
STUDY = dict(title=str, compare=str, rows=list, seeds=list, iterations=int, cfg_options=str)
ROW = dict(label=str, config=str, cfg_options=str, load_from=str)
OPTIONAL = ('seeds', 'iterations', 'cfg_options', 'load_from')
#: What decides the figures beside what decides the course of a training.
EVALUATION = ('val_dataloader', 'val_evaluator', 'test_dataloader', 'test_evaluator')


class Row(NamedTuple):
    """A row: a config with options, which come to ``settings``; its runs are below ``folder``.

    They start from the best weights of those of the row ``load_from`` with the same seeds.
    """

    label: str
    config: str
    options: list[str]
    folder: Path
    settings: dict[str, Any]
    load_from: Row | None = None

    @property
    def iterations(self) -> int:
        """Length of a run."""
        return int(self.settings['train_cfg']['max_iters'])


class Study(NamedTuple):
    """A study's file with the changes of the command line."""

    title: str
    compare: str
    rows: list[Row]
    seeds: list[int]


@dataclass
class Run:
    """A row with a seed, and what its folder shows of it."""

    row: Row
    seed: int
    iteration: int = 0
    left: str = ''
    best: dict[str, Any] | None = None  #: the best validation so far
    checkpoint: Path | None = None  #: that of the best validation, once the training is finished
    tests: Sequence[dict[str, Any]] = ()

    @property
    def folder(self) -> Path:
        """Work directory."""
        return self.row.folder / f'seed_{self.seed}'

    def read(self) -> None:
        """Read the files of the run; raises ``ValueError`` where they are damaged."""
        lines = standing_validations(self.folder) if (self.folder / FILE_NAME).exists() else []
        if lines:
            self.best, self.iteration = best_of(lines), lines[-1]['iteration']
            if self.iteration >= self.row.iterations:  # the checkpoint is written after the line
                pattern = f'best_*_iter_{self.best["iteration"]}.pth'
                self.checkpoint = next(self.folder.glob(pattern), None)
        if self.checkpoint:
            self.left = ''
            if (self.folder / 'test' / FILE_NAME).exists():
                self.tests = read_evaluations(self.folder / 'test', 'test')
            return
        log = next(filter(None, training_logs(self.folder)), None)
        if log:
            self.iteration = log[-1]['step']
            seconds = (self.row.iterations - self.iteration) * log[-1]['time']
            self.left = f'{timedelta(seconds=round(seconds))} left'


def training_logs(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """What each start of a run has logged of its iterations, the latest start first."""
    for file in sorted(folder.glob('*/vis_data/scalars.json'), reverse=True):
        text = file.read_text('utf-8')
        logged = map(json.loads, text[: text.rfind('\n') + 1].splitlines())  # all that is ended
        yield [line for line in logged if 'lr' in line]


def read_study(
    file: Path,
    out: Path,
    seeds: Sequence[int] | None = None,
    iterations: int | None = None,
    cfg_options: Sequence[str] = (),
) -> Study:
    """Read a study and all configs that it names; its folder is ``out``."""
    try:
        content = yaml.safe_load(file.read_text('utf-8'))
    except yaml.YAMLError as error:
        raise ConfigError(f'{file} is no YAML: {printable(str(error))}') from None
    check_keys(content, STUDY, str(file))
    rows: list[Row] = []
    for number, entry in enumerate(content['rows'], start=1):
        check_keys(entry, ROW, f'{file}, row {number}')
        label, length = entry['label'], iterations or content.get('iterations')
        given = [shlex.split(each.get('cfg_options', '')) for each in (content, entry)]
        words = [*given[0], *given[1], *cfg_options]
        try:
            cfg = load_config(entry['config'], cfg_options=words)
            end = cfg.train_cfg.get('max_iters')
            if end is None:
                raise ConfigError('train_cfg has no max_iters; a study counts iterations.')
        except (CoopError, OSError) as error:
            raise ConfigError(f'{file}, row {label!r}: {error}') from None
        if length:
            words.append(f'train_cfg.max_iters={length}')
            for index, scheduler in enumerate(cfg.get('param_scheduler') or ()):
                if scheduler.get('end') == end:
                    words.append(f'param_scheduler.{index}.end={length}')
            cfg.merge_from_dict(parse_options(words))
        folder = out / re.sub(r'\W+', '-', label).strip('-').lower()
        if given[1]:  # paper_tables.py must not take such a run for the config's own
            words.append(f'experiment_name={folder.name}')
        settings = json.loads(json.dumps(cfg.to_dict(), default=str))
        first = None
        if 'load_from' in entry:
            settings['load_from'] = entry['load_from']
            first = next((row for row in rows if row.label == entry['load_from']), None)
            if not first:
                raise ConfigError(
                    f'{file}, row {label!r}: load_from={entry["load_from"]!r} is no row above it.'
                )
        for row in rows:
            if row.folder == folder or not changes_of_config(row.settings, settings, *EVALUATION):
                raise ConfigError(
                    f'{file}: row {label!r} is row {row.label!r} once more; give each a label and '
                    'settings of its own.'
                )
        rows.append(Row(label, entry['config'], words, folder, settings, first))
    labels = [row.label for row in rows]
    if content['compare'] not in labels:
        raise ConfigError(f'{file}: compare={content["compare"]!r} is none of {", ".join(labels)}.')
    seeds = list(content.get('seeds', ()) if seeds is None else seeds)
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int for seed in seeds):
        raise ConfigError(f'{file}: seeds={seeds} have to be whole numbers, as in [0, 1, 2].')
    return Study(content['title'], content['compare'], rows, seeds)


def check_keys(value: Any, kinds: Mapping[str, type], place: str) -> None:
    """Refuse what is not a mapping with these keys and kinds of values."""
    if not isinstance(value, dict):
        raise ConfigError(f'{place} has to be a mapping with the keys {", ".join(kinds)}.')
    for key in {**kinds, **value}:
        if key not in kinds:
            raise ConfigError(f'{place}: unknown key {key!r}; the keys are {", ".join(kinds)}.')
        if key not in value and key not in OPTIONAL:
            raise ConfigError(f'{place} lacks {key!r}.')
        if key in value and type(value[key]) is not kinds[key]:
            kind = kinds[key].__name__
            raise ConfigError(f'{place}: {key}={value[key]!r} has to be of type {kind}.')


def claim_folder(study: Study, out: Path) -> None:
    """Note the settings of all rows in the study's folder, unless it holds something else."""
    record, known = out / STUDY_RECORD, {}
    if record.is_file():
        content = json.loads(record.read_text('utf-8'))
        title, known = content['title'], content['rows']
        if title != study.title:
            raise ConfigError(f'{out} holds the study {title!r}; name another folder with --out.')
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f'{out} is not the folder of a study; name another one with --out.')
    for row in study.rows:
        then = known.get(row.folder.name)
        changes = changes_of_config(then, row.settings, *EVALUATION) if then else []
        if changes and any(row.folder.glob('seed_*')):
            raise ConfigError(
                f'row {row.label!r} has changed since its runs in {row.folder}: '
                f'{first_few(map(printable, changes), separator="; ")}. Change it back, or name '
                'another folder with --out.'
            )
    known.update({row.folder.name: row.settings for row in study.rows})
    write_atomically(json.dumps(dict(title=study.title, rows=known)).encode(), record)
