"""Metrics."""

from .coop_iou_metric import CoopIoUMetric

__all__ = ['CoopIoUMetric']
