"""Engine: the loading of checkpoints."""

from .timm_checkpoint import load_from_timm

__all__ = ['load_from_timm']
