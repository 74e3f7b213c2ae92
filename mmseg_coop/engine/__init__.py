"""Engine: hooks, and the loading of checkpoints."""

from .hooks import RecordIoUHook
from .timm_checkpoint import load_from_timm

__all__ = ['RecordIoUHook', 'load_from_timm']
