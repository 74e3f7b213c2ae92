"""Engine: hooks, and the loading of checkpoints."""

from .exact_train_loop import ExactIterBasedTrainLoop
from .hooks import AtomicCheckpointHook, RecordIoUHook
from .safe_checkpoint import CheckpointError, guard_checkpoint_loaders, load_checkpoint_data
from .timm_checkpoint import load_from_timm

guard_checkpoint_loaders()

__all__ = [
    'AtomicCheckpointHook',
    'CheckpointError',
    'ExactIterBasedTrainLoop',
    'RecordIoUHook',
    'load_checkpoint_data',
    'load_from_timm',
]
