"""Hooks."""

from .checkpoint_hook import AtomicCheckpointHook
from .count_skipped_steps_hook import CountSkippedStepsHook
from .non_finite_loss_hook import NonFiniteLossHook
from .record_iou_hook import RecordIoUHook
from .skipped_files_hook import SkippedFilesHook

__all__ = [
    'AtomicCheckpointHook',
    'CountSkippedStepsHook',
    'NonFiniteLossHook',
    'RecordIoUHook',
    'SkippedFilesHook',
]
