"""Hooks."""

from .checkpoint_hook import AtomicCheckpointHook
from .record_iou_hook import RecordIoUHook

__all__ = ['AtomicCheckpointHook', 'RecordIoUHook']
