"""Data sets and their transforms."""

from .camvid import CamVidDataset
from .checked_loading import check_loading
from .skip_faulty_dataset import SkipFaultyDataset
from .transforms import EvalCenterCrop, LoadSegAnnotations, LoadSegImage, RandomGaussianBlur

__all__ = [
    'CamVidDataset',
    'EvalCenterCrop',
    'LoadSegAnnotations',
    'LoadSegImage',
    'RandomGaussianBlur',
    'SkipFaultyDataset',
    'check_loading',
]
