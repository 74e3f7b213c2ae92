"""Datasets and their transforms."""

from .camvid import CamVidDataset
from .faults import SkipFaultyDataset, check_loading
from .transforms import (
    EvalCenterCrop,
    LoadSecondImage,
    LoadSegAnnotations,
    LoadSegImage,
    RandomGaussianBlur,
)

__all__ = [
    'CamVidDataset',
    'EvalCenterCrop',
    'LoadSecondImage',
    'LoadSegAnnotations',
    'LoadSegImage',
    'RandomGaussianBlur',
    'SkipFaultyDataset',
    'check_loading',
]
