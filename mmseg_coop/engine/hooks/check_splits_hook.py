"""Stops a run whose data set turned out empty."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch.utils.data import DataLoader


@HOOKS.register_module()
class CheckSplitsHook(Hook):
    """Refuses an empty split.

    Over an empty data set mmengine's ``InfiniteSampler`` searches for an index for ever, and an
    evaluation ends in a division by zero.

    Raises:
        ValueError: A split has no image; the message names where images were looked for.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check the training split, and the validation split before hours have gone by."""
        self._check(runner.train_dataloader, 'training')
        if runner.val_loop is not None:
            self._check(runner.val_loop.dataloader, 'validation')

    def before_val(self, runner: Runner) -> None:
        """Check the validation split."""
        self._check(runner.val_loop.dataloader, 'validation')

    def before_test(self, runner: Runner) -> None:
        """Check the test split."""
        self._check(runner.test_loop.dataloader, 'test')

    @staticmethod
    def _check(dataloader: DataLoader, split: str) -> None:
        dataset = dataloader.dataset
        if len(dataset) == 0:
            prefix = getattr(dataset, 'data_prefix', {})
            suffix = getattr(dataset, 'img_suffix', '')
            raise ValueError(
                f'the {split} split has no image: {type(dataset).__name__} found no file '
                f'*{suffix} for {dict(prefix)}, ann_file={getattr(dataset, "ann_file", "")!r}. '
                'Check data_root, data_prefix, ann_file and img_suffix.'
            )
