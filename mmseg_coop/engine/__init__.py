"""Engine: rates, hooks, and the loading of checkpoints."""

from .bfloat16_optim_wrapper import BFloat16OptimWrapper
from .exact_train_loop import ExactIterBasedTrainLoop
from .hooks import (
    ActivationCheckpointHook,
    AtomicCheckpointHook,
    ChannelsLastHook,
    CompileHook,
    CountSkippedStepsHook,
    ExactEarlyStoppingHook,
    NonFiniteLossHook,
    RecordIoUHook,
)
from .layer_decay import CoopLayerDecayOptimWrapperConstructor
from .loader_guards import guard_checkpoint_loaders
from .safe_checkpoint import load_checkpoint_data
from .timm_checkpoint import load_from_timm

guard_checkpoint_loaders()

__all__ = [
    'ActivationCheckpointHook',
    'AtomicCheckpointHook',
    'BFloat16OptimWrapper',
    'ChannelsLastHook',
    'CompileHook',
    'CoopLayerDecayOptimWrapperConstructor',
    'CountSkippedStepsHook',
    'ExactEarlyStoppingHook',
    'ExactIterBasedTrainLoop',
    'NonFiniteLossHook',
    'RecordIoUHook',
    'load_checkpoint_data',
    'load_from_timm',
]
