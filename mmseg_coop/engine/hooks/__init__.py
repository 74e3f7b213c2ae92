"""Hooks."""

from .checkpoint_hook import CheckpointHook
from .record_iou_hook import RecordIoUHook

__all__ = ['CheckpointHook', 'RecordIoUHook']
