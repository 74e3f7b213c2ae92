"""Runs a study: several runs at once, each in a process of its own, and what they measured."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from mmengine.config import Config
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mmseg_coop_cli import CoopError

from ..apis.launch import lock_work_dir
from ..apis.model import choose_device
from ..errors import ConfigError, first_few, printable
from .study import Run, claim_folder, read_study
from .study_results import write_results

SECONDS = 1.0  #: between two looks at the runs


def run_study(
    study: str,
    *,
    root: Path,
    out: str | None = None,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    iterations: int | None = None,
    jobs: int = 1,
    device: str | None = None,
    test: bool = False,
    cfg_options: Sequence[str] | None = None,
) -> None:
    """Run what a study has not run yet, then write and print its tables.

    Args:
        study: File of the study, or the name of one in ``configs/studies``.
        root: The folder with the project's ``configs`` and ``tools``.
        out: Folder of the study. Defaults to None: ``work_dirs/{name of the file}``.
        rows: Labels of the rows to run. Defaults to None: all.
        seeds: Seeds. Defaults to None: those of the study.
        iterations: Length of every run, with its schedule. Defaults to None: the study's, or else
            those of the configs.
        jobs: Number of runs at once. Defaults to 1.
        device: ``'cpu'`` keeps off the GPU. Defaults to None.
        test: Whether to evaluate the checkpoint chosen on val on the test split. Defaults to False.
        cfg_options: ``KEY=VALUE`` words that override those of all configs. Defaults to None.

    Raises:
        ConfigError: The study cannot be meant as it is, or its folder is not its own.
        CoopError: Runs failed.
        OSError: A file does not exist, or cannot be read or written.
    """
    file = Path(study)
    if not file.is_file():
        file = root / 'configs/studies' / f'{study}.yml'
    if not file.is_file():
        known = ', '.join(sorted(path.stem for path in file.parent.glob('*.yml')))
        raise FileNotFoundError(f'study {study!r} is no file, and none of {known}.')
    folder = Path(out or f'work_dirs/{file.stem}')
    place = choose_device(device)
    plan = read_study(file, folder, seeds, iterations, cfg_options or ())
    labels = [row.label for row in plan.rows]
    for label in rows or ():
        if label not in labels:
            raise ConfigError(f'row {label!r} is none of {file}: {", ".join(labels)}.')
    for row in plan.rows if test else ():
        val, held_out = (row.settings[f'{s}_dataloader']['dataset'] for s in ('val', 'test'))
        if {**val, 'pipeline': None} == {**held_out, 'pipeline': None}:
            raise ConfigError(
                f'--test: the test split of row {row.label!r} is its val split; set another '
                'test_dataloader.dataset in cfg_options.'
            )
    chosen = [row for row in plan.rows if row.label in (rows or labels)]
    tasks = [Task(row, seed) for seed in plan.seeds for row in chosen]
    claim_folder(plan, folder)
    with lock_work_dir(Config(dict(work_dir=str(folder)))):
        Queue(tasks, root, jobs, device, test).work()
        write_results(plan, folder, place)
    failed = [f'{task} ({task.log}): {task.said}' for task in tasks if task.state == 'failed']
    if failed:
        raise CoopError(
            f'{len(failed)} of {len(tasks)} runs failed; the same command tries them again. '
            + first_few(failed, len(failed), separator='; ')
        )


@dataclass
class Task(Run):
    """A run that is to be finished."""

    state: str = 'waiting'  #: or train, test, elsewhere, finished, failed
    said: str = ''  #: why it failed
    process: subprocess.Popen[bytes] | None = None

    def __str__(self) -> str:
        return f'{self.row.label}, seed {self.seed}'

    @property
    def log(self) -> Path:
        """File with what its processes print."""
        return self.folder / 'console.log'

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to do."""
        return self.state in ('finished', 'failed')

    def __post_init__(self) -> None:
        #: The run from whose weights it starts.
        self.first = self.row.load_from and Run(self.row.load_from, self.seed)

    @property
    def facts(self) -> list[str]:
        """What there is to say of it."""
        progress, score = f'{self.iteration}/{self.row.iterations}', ''
        if self.best:
            miou = self.best['outputs'][self.best['output']]['mIoU']
            score = f'mIoU {miou:.2f} at {self.best["iteration"]}'
        return [self.row.label, f'seed {self.seed}', self.state, progress, self.left, score]

    def fail(self, why: str) -> None:
        """Give up."""
        self.state, self.said, self.left = 'failed', printable(why), ''


class Queue:
    """Works off tasks, in their order, ``jobs`` at once."""

    def __init__(
        self, tasks: Sequence[Task], root: Path, jobs: int, device: str | None, test: bool
    ) -> None:
        self.tasks, self.root, self.jobs, self.test = tasks, root, jobs, test
        affinity = getattr(os, 'sched_getaffinity', None)
        cores = max(1, (len(affinity(0)) if affinity else os.cpu_count() or 1) // jobs)
        # A GPU is fed by workers; on the CPU they would take time from those that train.
        on_gpu = device != 'cpu' and torch.cuda.is_available()
        self.workers = max(1, cores - 1) if on_gpu else 0
        self.env = {
            # Threads that wait by spinning take the time of whatever else the machine does.
            'OMP_WAIT_POLICY': 'PASSIVE',
            **os.environ,
            'OMP_NUM_THREADS': '1' if on_gpu else str(cores),
        }
        if device == 'cpu':
            self.env['CUDA_VISIBLE_DEVICES'] = ''

    def work(self) -> None:
        """Work until every task is finished or failed."""
        try:
            with display(self.tasks) as show:
                while not all(task.is_over for task in self.tasks):
                    for task in self.tasks:
                        self.attend(task)
                    show()
                    time.sleep(SECONDS)
        except KeyboardInterrupt:
            done = sum(task.state == 'finished' for task in self.tasks)
            raise KeyboardInterrupt(
                f'interrupted with {done} of {len(self.tasks)} runs finished; the same command '
                'goes on with the others'
            ) from None
        finally:
            running = [task.process for task in self.tasks if task.process]
            for process in running:  # all, before a second interrupt can come
                process.terminate()
            for process in running:
                process.wait()

    def attend(self, task: Task) -> None:
        """See how a task is doing; start what it needs next if there is room."""
        if task.is_over:
            return
        code = task.process.poll() if task.process else None
        first = task.first
        try:
            task.read()
            if first and not first.checkpoint:
                first.read()
        except ValueError as error:  # its files are damaged
            return task.fail(str(error))
        if task.process and code is None:
            return None
        step = 'train' if not task.checkpoint else 'test' if self.test and not task.tests else None
        if task.process:
            task.process = None
            if code:
                lines = task.log.read_text('utf-8', errors='replace').split('\n')
                return task.fail(next((line for line in lines[::-1] if line.strip()), ''))
            if step == task.state:
                return task.fail(f'it ended without what {step} gives; see RecordIoUHook')
        if step == 'train' and first and not first.checkpoint:
            if all(other.is_over for other in self.tasks if other.folder == first.folder):
                task.fail(f'it starts from {first.folder}, which is not finished; run that first')
            return None
        if step is None:
            task.state = 'finished'
        elif sum(bool(other.process) for other in self.tasks) < self.jobs:
            if is_locked(task.folder):
                task.state = 'elsewhere'
            else:
                task.state = step
                self.start(task)
        return None

    def start(self, task: Task) -> None:
        """Train a run, go on with it, or test it."""
        task.folder.mkdir(parents=True, exist_ok=True)
        words = [task.row.config, '--work-dir', str(task.folder), '--resume']
        if task.checkpoint:
            words = [words[0], str(task.checkpoint), '--work-dir', str(task.folder / 'test')]
        words += ['--cfg-options', *task.row.options, f'randomness.seed={task.seed}']
        if task.first and not task.checkpoint:
            words.append(f'load_from={task.first.checkpoint}')
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if loader in task.row.settings:
                words.append(f'{loader}.num_workers={self.workers}')
                words.append(f'{loader}.persistent_workers={self.workers > 0}')
        command = [sys.executable, str(self.root / f'tools/{task.state}.py'), *words]
        with task.log.open('a') as log:
            print('$', shlex.join(command), file=log, flush=True)
            task.process = spawn(command, self.env, log)


def spawn(command: list[str], env: dict[str, str], log: IO[str]) -> subprocess.Popen[bytes]:
    """Start a process whose words go into a log."""
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def is_locked(folder: Path) -> bool:
    """Whether a run goes on there that a killed study has left behind."""
    try:
        lock_work_dir(Config(dict(work_dir=str(folder)))).close()
    except ConfigError:
        return True
    return False


@contextmanager
def display(tasks: Sequence[Task]) -> Iterator[Callable[[], None]]:
    """Show tasks: on a terminal as a table in place, elsewhere a line at each change."""
    console = Console()
    said: dict[int, tuple[str, object]] = {}

    def table() -> Table:
        grid = Table('row', 'seed', 'state', 'iteration', 'time', 'best so far', box=None)
        for task in sorted(tasks, key=lambda task: (not task.process, task.state == 'finished')):
            grid.add_row(*task.facts)
        return grid

    def say() -> None:
        for number, task in enumerate(tasks):
            now = task.state, task.best
            if task.state != 'waiting' and said.get(number) != now:
                said[number] = now
                print('  '.join(filter(None, task.facts)), flush=True)

    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda: live.update(table(), refresh=True)
    else:
        yield say
