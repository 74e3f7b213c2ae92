"""Hooks."""

from .activation_checkpoint_hook import ActivationCheckpointHook
from .channels_last_hook import ChannelsLastHook
from .checkpoint_hook import AtomicCheckpointHook
from .compile_hook import CompileHook
from .count_skipped_steps_hook import CountSkippedStepsHook
from .early_stopping_hook import ExactEarlyStoppingHook
from .non_finite_loss_hook import NonFiniteLossHook
from .record_iou_hook import RecordIoUHook
from .skipped_files_hook import SkippedFilesHook

__all__ = [
    'ActivationCheckpointHook',
    'AtomicCheckpointHook',
    'ChannelsLastHook',
    'CompileHook',
    'CountSkippedStepsHook',
    'ExactEarlyStoppingHook',
    'NonFiniteLossHook',
    'RecordIoUHook',
    'SkippedFilesHook',
]
