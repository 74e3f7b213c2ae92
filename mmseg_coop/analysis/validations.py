"""Reads what a run has measured: the lines of ``iou.jsonl``, which ``RecordIoUHook`` writes."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from ..engine.hooks.record_iou_hook import FILE_NAME
from ..errors import DataError

#: File that marks the folder of a study; its runs are in ``ROW/seed_N``.
STUDY_RECORD = 'study.json'
KEYS = ('split', 'iteration', 'config', 'seed', 'output', 'classes', 'outputs')


def read_evaluations(work_dir: Path, split: str = 'val') -> list[dict[str, Any]]:
    """Read the lines of a split, oldest first; one that is not yet ended does not count.

    Args:
        work_dir: Where the run has written.
        split: ``'val'``, the validations of a training, or ``'test'``. Defaults to ``'val'``.

    Returns:
        The lines, which may be none.

    Raises:
        DataError: A line is damaged.
        FileNotFoundError: There is no such file.
    """
    file = work_dir / FILE_NAME
    if not work_dir.is_dir():
        raise FileNotFoundError(f'work dir {str(work_dir)!r} does not exist.')
    if not file.is_file():
        raise FileNotFoundError(
            f'{work_dir} holds no results: there is no {FILE_NAME}. RecordIoUHook writes it when '
            'a run with CoopIoUMetric is validated; both are in the shipped configs.'
        )
    evaluations = []
    text = file.read_text('utf-8', errors='replace')
    for number, part in enumerate(text[: text.rfind('\n') + 1].splitlines(), start=1):
        try:
            line = json.loads(part)
            missing = [key for key in KEYS if key not in line]
            if missing:
                raise ValueError(f'it lacks {", ".join(missing)}')
            for name, output in line['outputs'].items():
                if len(output['IoU']) != len(line['classes']) or not math.isfinite(output['mIoU']):
                    raise ValueError(f'output {name!r} has not one IoU a class')
            if line['output'] not in line['outputs']:
                raise ValueError(f'it has no figures of output {line["output"]!r}')
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f'line {number} of {file} is cut short or damaged ({error}). Was the run stopped '
                'while it wrote? Remove the line, and resume the run if it is not finished.'
            ) from None
        if line['split'] == split and (split == 'test' or line['iteration'] is not None):
            evaluations.append(line)
    return evaluations


def standing_validations(work_dir: Path) -> list[dict[str, Any]]:
    """Read the validations of a run that count, in the order of their iterations.

    What a resumed run has evaluated again is void, since it went on from before.

    Args:
        work_dir: Where the run has written.

    Returns:
        The lines, which may be none.

    Raises:
        DataError: A line is damaged, or they are of several runs or left images out.
        FileNotFoundError: There are no results.
    """
    file, validations = work_dir / FILE_NAME, read_evaluations(work_dir)
    for line, after in itertools.pairwise(validations):
        # A resumed run may get another seed and go back a little; another run starts again.
        restart = after['iteration'] <= validations[0]['iteration']
        if line['config'] != after['config'] or (restart and line['seed'] != after['seed']):
            raise DataError(
                f'{file} holds several runs: {line["config"]} with seed {line["seed"]}, then '
                f'{after["config"]} with seed {after["seed"]}. Give each run a work dir of its own.'
            )
    standing: list[dict[str, Any]] = []
    for line in validations:
        standing = [old for old in standing if old['iteration'] < line['iteration']] + [line]
    for line in standing:
        if line.get('images_left_out'):
            raise DataError(
                f'{file}: the validation at iteration {line["iteration"]} left out '
                f'{line["images_left_out"]} images, so it is not that of the papers. Restore the '
                'files and evaluate again.'
            )
    return standing


def best_of(validations: list[dict[str, Any]]) -> dict[str, Any]:
    """The validation with the highest mIoU of the chosen output, the first of equal ones."""
    return max(validations, key=lambda line: line['outputs'][line['output']]['mIoU'])
