"""Keeps the full table of every evaluation with the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.runner import BaseLoop, Runner
from mmseg.registry import HOOKS
from typing_extensions import override

from ...evaluation.coop_iou_metric import TABLE_KEY

#: Name of the file in the work directory.
FILE_NAME = 'iou.jsonl'


@HOOKS.register_module()
class RecordIoUHook(Hook):
    """Appends the table of :class:`CoopIoUMetric` to ``iou.jsonl`` in the work directory.

    mmengine's log keeps the means only. Each line is one evaluation as JSON: ``split`` (``val`` or
    ``test``), ``iteration`` (null outside a training), ``config`` (name of the experiment),
    ``seed``, ``output`` (the chosen one), ``classes``, and ``outputs``: for every output its
    ``mIoU`` and the ``IoU`` of each class, in percent; null for a class that occurs neither in
    labels nor predictions. A model without named outputs has one, called ``prediction``. If
    :class:`SkipFaultyDataset` left images out, ``images_left_out`` says how many.

    A run that goes on after a kill may repeat evaluations since its last checkpoint. Nothing is
    deleted: a validation stands in place of those before it whose iteration is the same or later.
    """

    priority = 'LOW'

    @override
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._record(runner, 'val')

    @override
    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._record(runner, 'test')

    @staticmethod
    @master_only
    def _record(runner: Runner, split: str) -> None:
        hub = MessageHub.get_current_instance()
        table: dict[str, Any] | None = hub.get_info(TABLE_KEY)
        if table is None:  # another metric, or predictions were only written
            return
        hub.update_info(TABLE_KEY, None)
        loop = runner._train_loop
        line = dict(
            split=split,
            # `runner.iter` would build the training loop, whose data a test need not have.
            iteration=loop.iter if isinstance(loop, BaseLoop) else None,
            config=runner.experiment_name.removesuffix(f'_{runner.timestamp}'),
            seed=runner.seed,
            **table,
        )
        left_out = hub.log_scalars.get(f'{split}/images_left_out')
        if left_out is not None:
            line['images_left_out'] = int(left_out.current())
        with Path(runner.work_dir, FILE_NAME).open('a+b') as file:
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read() != b'\n':  # a line that was cut short must not spoil this one
                    file.write(b'\n')
            file.write(json.dumps(line).encode() + b'\n')
