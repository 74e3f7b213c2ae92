"""Engine: hooks, and the loading of checkpoints."""

from .hooks import CheckSplitsHook
from .timm_checkpoint import load_from_timm

__all__ = ['CheckSplitsHook', 'load_from_timm']
