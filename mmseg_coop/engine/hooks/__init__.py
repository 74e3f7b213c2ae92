"""Hooks."""

from .record_iou_hook import RecordIoUHook

__all__ = ['RecordIoUHook']
