"""What a run says on the console: a head, its progress, tables, warnings, where the files are.

The log file in the work directory has all: the config and what else mmengine logs, and Python's
warnings.
"""

from __future__ import annotations

import io
import logging
import shutil
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import MMLogger
from mmengine.runner import BaseLoop, Runner
from typing_extensions import Self, override

#: In warnings that the stack gives in every run and that no user can act on.
_NOISE = ('deprecated', 'The prefix is not set in metric class', 'since its requires_grad=False')
_PYTHON_WARNINGS = logging.getLogger('py.warnings')


class Console(logging.Handler):
    """Takes the place of the console's handler in the logger of a run.

    Of the log it shows warnings and errors, and of what is only information the tables of an
    evaluation and what is logged with ``extra=dict(on_console=True)``. Inside ``with``, Python's
    warnings go to the log file instead of the console.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.stream = sys.stdout
        #: Whether the progress is one line that is written over.
        self.in_place = self.stream.isatty()
        self._is_open = False  # that line

    def __enter__(self) -> Self:
        logging.captureWarnings(True)
        return self

    def __exit__(self, *_: object) -> None:
        self.end_line()
        logging.captureWarnings(False)
        _PYTHON_WARNINGS.handlers.clear()

    def quiet(self, kind: type[Runner]) -> type[Runner]:
        """Make of a class of runners one whose logger has this handler."""
        console = self

        class QuietRunner(kind):
            def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
                logger = super().build_logger(*args, **kwargs)
                console.attach(logger)
                return logger

            def load_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
                with redirect_stdout(io.StringIO()):  # RunCheckHook says what does not fit
                    return super().load_checkpoint(*args, **kwargs)

        return QuietRunner

    def attach(self, logger: MMLogger) -> None:
        """Take the place of a logger's handler for the console; other processes say errors only."""
        for index, handler in enumerate(logger.handlers if is_main_process() else ()):
            if type(handler) is logging.StreamHandler:
                self.filters = handler.filters  # a warning is given once
                logger.handlers[index] = self
            else:
                _PYTHON_WARNINGS.addHandler(handler)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno > logging.INFO:
            if not any(noise in text for noise in _NOISE):
                self.write(f'{record.levelname.lower()}: {text}')
        elif '\n+--' in text or getattr(record, 'on_console', False):
            self.write(text.strip('\n'))

    def write(self, text: str) -> None:
        """Print a text, over the progress."""
        clear = '\r\x1b[K' if self._is_open else ''
        print(f'{clear}{text}', file=self.stream, flush=True)
        self._is_open = False

    def facts(self, facts: Mapping[str, object]) -> None:
        """Print what there is to say under each name, a line each; nothing is left out."""
        for name, value in facts.items():
            if value:
                self.write(f'{name:<12}{value}')

    def progress(self, text: str, *, is_due: bool) -> None:
        """Show how far a run is: on a terminal always, in one line; elsewhere if a line is due."""
        if self.in_place:
            width = shutil.get_terminal_size().columns - 1
            print(f'\r\x1b[K{text[:width]}', end='', file=self.stream, flush=True)
            self._is_open = True
        elif is_due:
            self.write(text)

    def end_line(self) -> None:
        """Leave the progress as it is, and go on below it."""
        if self._is_open:
            print(file=self.stream, flush=True)
            self._is_open = False


class ConsoleHook(Hook):
    """Writes the head, the progress and the files of a run to the console."""

    priority = 'VERY_LOW'  # what ends a run at its start comes before the head

    def __init__(self, console: Console) -> None:
        self.console = console
        self.interval = 10

    @override
    def before_run(self, runner: Runner) -> None:
        for hook in runner.hooks:
            if isinstance(hook, LoggerHook):
                self.interval = hook.interval
        model = getattr(runner.model, 'module', runner.model)
        count = sum(parameter.numel() for parameter in model.parameters())
        devices = sorted({str(parameter.device) for parameter in model.parameters()})
        self.console.facts(
            dict(
                config=runner.cfg.filename,
                data=_data(runner),
                model=f'{type(model).__name__}, {count / 1e6:.2f} M parameters on '
                + ', '.join(devices),
                weights=runner._load_from,
                work_dir=runner.work_dir,
                seed='that of the checkpoint' if runner._resume else runner.seed,
            )
        )

    @override
    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
        mode: str = 'train',
    ) -> None:
        parts, hub = [], runner.message_hub
        if mode == 'train':
            done, total = runner.iter + 1, runner.max_iters
            scalars = {key: hub.log_scalars.get(f'train/{key}') for key in ('loss', 'lr')}
            parts = [f'{key} {scalar.current():.4g}' for key, scalar in scalars.items() if scalar]
        else:
            done, total = batch_idx + 1, len(getattr(runner, f'{mode}_dataloader'))
        left = timedelta(seconds=int(hub.runtime_info.get('eta', 0)))
        text = '  '.join([f'{mode:<12}{done}/{total}', *parts, f'{left} left'])
        is_last = mode == 'train' and done == total
        self.console.progress(text, is_due=is_last or done % self.interval == 0)

    @override
    def after_train(self, runner: Runner) -> None:
        self.console.end_line()

    @override
    def before_val_epoch(self, runner: Runner) -> None:
        if isinstance(runner._train_loop, BaseLoop):
            self.console.end_line()
            self.console.facts(dict(evaluation=f'at iteration {runner.iter}'))

    @override
    def after_run(self, runner: Runner) -> None:
        known = runner.message_hub.runtime_info
        metrics = getattr(getattr(runner._test_loop, 'evaluator', None), 'metrics', ())
        results = Path(runner.log_dir, f'{runner.timestamp}.json')
        figures = runner.cfg.get('visualizer', {}).get('save_dir')
        self.console.facts(
            dict(
                checkpoint=known.get('last_ckpt'),
                best=', '.join(sorted(v for k, v in known.items() if k.startswith('best_ckpt'))),
                results=results if metrics and results.is_file() else '',
                figures=figures if figures != runner.log_dir else '',
                label_maps=', '.join(filter(None, {getattr(m, 'output_dir', '') for m in metrics})),
                log=runner.logger.log_file,
            )
        )


def _data(runner: Runner) -> str:
    """How many images of how many classes a run uses for what."""
    counts, classes = [], 0
    for split in ('train', 'val', 'test'):
        loop = getattr(runner, f'_{split}_loop')
        if isinstance(loop, BaseLoop):
            dataset = loop.dataloader.dataset
            counts.append(f'{len(dataset)} images to {split}')
            classes = len(getattr(dataset, 'metainfo', {}).get('classes') or ())
    return f'{", ".join(counts)}, {classes} classes'
