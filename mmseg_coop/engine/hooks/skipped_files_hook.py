"""Counts and reports the files that a data set leaves out."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...datasets.faults.skip_faulty_dataset import SKIPPED_KEY, SkipFaultyDataset


@HOOKS.register_module()
class SkippedFilesHook(Hook):
    """Counts and reports what :class:`SkipFaultyDataset` leaves out.

    In training the log names each faulty file when it is first met, by whichever process, and at
    the end, also that of a run that fails, says how many files there were and how often they were
    drawn. The counts are part of the checkpoints, so those of a resumed run are as if there had
    been no interruption. With every evaluation the log says over how many images it is, and
    ``images_left_out`` stands beside the metrics.

    Raises:
        ValueError: From :meth:`after_val_iter` and :meth:`after_test_iter`.
    """

    def before_train(self, runner: Runner) -> None:
        """Go on with the counts of a checkpoint.

        Args:
            runner: The runner.
        """
        #: How often each faulty file was drawn.
        self.draws: dict[str, int] = dict(runner.message_hub.runtime_info.get(SKIPPED_KEY, {}))
        self._runner = runner
        atexit.register(self._summarize)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Count, and name new files.

        Args:
            runner: The runner.
            batch_idx: Not used; part of mmengine's interface.
            data_batch: The batch, with what was skipped for it.
            outputs: Not used.
        """
        # All processes count for all, so that any may write the checkpoint.
        skipped = [fault for part in all_gather_object(_skipped(data_batch)) for fault in part]
        for path, what in skipped:
            if path not in self.draws:
                runner.logger.warning(f'Skipped from now on: {what}')
            self.draws[path] = self.draws.get(path, 0) + 1
        if skipped:
            runner.message_hub.update_info(SKIPPED_KEY, dict(self.draws))

    def after_train(self, runner: Runner) -> None:
        """Report the counts.

        Args:
            runner: The runner.
        """
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

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Refuse samples that stand for others.

        Args:
            runner: The runner.
            batch_idx: Not used; part of mmengine's interface.
            data_batch: The batch.
            outputs: Not used.

        Raises:
            ValueError: If there are any.
        """
        for path, _ in _skipped(data_batch):
            raise ValueError(
                f'an evaluation has another image in place of {path}; set test_mode=True in the '
                'SkipFaultyDataset of val_dataloader and test_dataloader'
            )

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Refuse samples that stand for others, see :meth:`after_val_iter`."""
        self.after_val_iter(runner, batch_idx, data_batch, outputs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Say over how many images a validation was.

        Args:
            runner: The runner.
            metrics: Not used; part of mmengine's interface.
        """
        self._report(runner, 'val', runner.val_dataloader.dataset)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Say over how many images a test was, see :meth:`after_val_epoch`."""
        self._report(runner, 'test', runner.test_dataloader.dataset)

    @staticmethod
    def _report(runner: Runner, split: str, dataset: Any) -> None:
        parts = list(_skipping(dataset))
        files = [path for part in parts for path in part.left_out]
        missing = sum(part.full_length - len(part) for part in parts)
        if not missing:
            return
        runner.message_hub.update_scalar(f'{split}/images_left_out', float(missing))
        more = f' and {len(files) - 10} more' if len(files) > 10 else ''
        # A warning is printed only once, unless something in it changes.
        when = f' after iteration {runner.iter}' if split == 'val' else ''
        runner.logger.warning(
            f'mIoU{when} is over {len(dataset)} of {len(dataset) + missing} images; left out: '
            f'{", ".join(files[:10])}{more}'
        )


def _skipped(part: Any) -> list[tuple[str, str]]:
    """Files that the samples of a batch stand for, and what is wrong with them."""
    if isinstance(part, dict):
        return _skipped(part.get('data_samples', ()))
    if isinstance(part, (list, tuple)):  # also of the views that test-time augmentation makes
        return [fault for item in part for fault in _skipped(item)]
    return part.metainfo.get(SKIPPED_KEY, [])


def _skipping(dataset: Any) -> Iterator[SkipFaultyDataset]:
    if isinstance(dataset, SkipFaultyDataset):
        yield dataset
        return
    inside = [*getattr(dataset, 'datasets', ()), getattr(dataset, 'dataset', None)]
    for part in inside:
        if part is not None:
            yield from _skipping(part)
