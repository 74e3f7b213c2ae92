"""Datasets and their transforms."""

from .camvid import CamVidDataset
from .faults import SkipFaultyDataset, check_loading
from .mfnet import MFNetDataset
from .nyuv2 import NYUv2Dataset
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
    'MFNetDataset',
    'NYUv2Dataset',
    'RandomGaussianBlur',
    'SkipFaultyDataset',
    'check_loading',
]
