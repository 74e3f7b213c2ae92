"""Engine: hooks, and the loading of checkpoints."""

from .exact_train_loop import ExactIterBasedTrainLoop
from .hooks import AtomicCheckpointHook, CountSkippedStepsHook, NonFiniteLossHook, RecordIoUHook
from .loader_guards import guard_checkpoint_loaders
from .safe_checkpoint import load_checkpoint_data
from .timm_checkpoint import load_from_timm

guard_checkpoint_loaders()

__all__ = [
    'AtomicCheckpointHook',
    'CountSkippedStepsHook',
    'ExactIterBasedTrainLoop',
    'NonFiniteLossHook',
    'RecordIoUHook',
    'load_checkpoint_data',
    'load_from_timm',
]
