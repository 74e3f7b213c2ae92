"""Hooks."""

from .check_loss_hook import CheckLossHook
from .checkpoint_hook import AtomicCheckpointHook
from .count_skipped_steps_hook import CountSkippedStepsHook
from .record_iou_hook import RecordIoUHook
from .skipped_files_hook import SkippedFilesHook

__all__ = [
    'AtomicCheckpointHook',
    'CheckLossHook',
    'CountSkippedStepsHook',
    'RecordIoUHook',
    'SkippedFilesHook',
]
