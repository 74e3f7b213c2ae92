"""Data sets and their transforms."""

from .camvid import CamVidDataset
from .checked_loading import check_loading
from .data_fault import DataFault
from .skip_faulty_dataset import SkipFaultyDataset
from .transforms import EvalCenterCrop, LoadSegAnnotations, LoadSegImage, RandomGaussianBlur

__all__ = [
    'CamVidDataset',
    'DataFault',
    'EvalCenterCrop',
    'LoadSegAnnotations',
    'LoadSegImage',
    'RandomGaussianBlur',
    'SkipFaultyDataset',
    'check_loading',
]
