"""Engine: hooks, and the loading of checkpoints."""

from .exact_train_loop import ExactIterBasedTrainLoop
from .hooks import AtomicCheckpointHook, CheckLossHook, CountSkippedStepsHook, RecordIoUHook
from .numeric_fault import NumericFaultError
from .safe_checkpoint import CheckpointError, guard_checkpoint_loaders, load_checkpoint_data
from .timm_checkpoint import load_from_timm

guard_checkpoint_loaders()

__all__ = [
    'AtomicCheckpointHook',
    'CheckLossHook',
    'CheckpointError',
    'CountSkippedStepsHook',
    'ExactIterBasedTrainLoop',
    'NumericFaultError',
    'RecordIoUHook',
    'load_checkpoint_data',
    'load_from_timm',
]
