"""Counts and reports the files that a dataset leaves out."""

from __future__ import annotations

import atexit
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from typing_extensions import override

from ...datasets.faults.skip_faulty_dataset import SKIPPED_KEY, SkipFaultyDataset
from ...datasets.faults.walk import iter_datasets
from ...errors import first_few


@HOOKS.register_module()
class SkippedFilesHook(Hook):
    """Counts and reports what :class:`SkipFaultyDataset` leaves out.

    In training the log names each faulty file when it is first met, by whichever process, and at
    the end, also that of a run that fails, says how many files there were and how often they were
    drawn. The counts are part of the checkpoints, so those of a resumed run are as if there had
    been no interruption. With every evaluation the log says over how many images it is, and
    ``images_left_out`` stands beside the metrics.

    Raises:
        ValueError: A sample of an evaluation stands for others.
    """

    @override
    def before_train(self, runner: Runner) -> None:
        #: How often each faulty file was drawn; goes on with the counts of a checkpoint.
        self.draws: dict[str, int] = dict(runner.message_hub.runtime_info.get(SKIPPED_KEY, {}))
        self._runner = runner
        atexit.register(self._summarize)

    @override
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        # All processes count for all, so that any may write the checkpoint.
        skipped = [fault for part in all_gather_object(_skipped(data_batch)) for fault in part]
        for path, what in skipped:
            if path not in self.draws:
                runner.logger.warning(f'Skipped from now on: {what}')
            self.draws[path] = self.draws.get(path, 0) + 1
        if skipped:
            runner.message_hub.update_info(SKIPPED_KEY, dict(self.draws))

    @override
    def after_train(self, runner: Runner) -> None:
        atexit.unregister(self._summarize)
        self._summarize()

    def _summarize(self) -> None:
        runner = self._runner
        if not self.draws:
            runner.logger.info('No file was skipped in training.')
            return
        runner.logger.warning(
            f'Faulty files skipped up to iteration {runner.iter}: {len(self.draws)}, in '
            f'{sum(self.draws.values())} draws: '
            + ', '.join(f'{path} ({count})' for path, count in sorted(self.draws.items()))
        )

    @override
    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        for path, _ in _skipped(data_batch):
            raise ValueError(
                f'an evaluation has another image in place of {path}; set test_mode=True in the '
                'SkipFaultyDataset of val_dataloader and test_dataloader'
            )

    after_test_iter = after_val_iter

    @override
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._report(runner, 'val', runner.val_dataloader.dataset)

    @override
    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._report(runner, 'test', runner.test_dataloader.dataset)

    @staticmethod
    def _report(runner: Runner, split: str, dataset: Any) -> None:
        parts = [
            part
            for part in iter_datasets(dataset, until='SkipFaultyDataset')
            if isinstance(part, SkipFaultyDataset)
        ]
        files = [path for part in parts for path in part.left_out]
        missing = sum(part.full_length - len(part) for part in parts)
        if not missing:
            return
        runner.message_hub.update_scalar(f'{split}/images_left_out', float(missing))
        # A warning is printed only once, unless something in it changes.
        when = f' after iteration {runner.iter}' if split == 'val' else ''
        runner.logger.warning(
            f'mIoU{when} is over {len(dataset)} of {len(dataset) + missing} images; left out: '
            f'{first_few(files, 10)}'
        )


def _skipped(part: Any) -> list[tuple[str, str]]:
    """Files that the samples of a batch stand for, and what is wrong with them."""
    if isinstance(part, dict):
        return _skipped(part.get('data_samples', ()))
    if isinstance(part, (list, tuple)):  # also of the views that test-time augmentation makes
        return [fault for item in part for fault in _skipped(item)]
    return part.metainfo.get(SKIPPED_KEY, [])
