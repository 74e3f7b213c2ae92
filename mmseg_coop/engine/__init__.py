"""Engine: hooks, and the loading of checkpoints."""

from .hooks import RecordIoUHook
from .safe_checkpoint import CheckpointError, guard_checkpoint_loaders, load_checkpoint_data
from .timm_checkpoint import load_from_timm

guard_checkpoint_loaders()

__all__ = ['CheckpointError', 'RecordIoUHook', 'load_checkpoint_data', 'load_from_timm']
