"""Data sets and their transforms."""

from .camvid import CamVidDataset
from .transforms import EvalCenterCrop, LoadSegAnnotations, LoadSegImage, RandomGaussianBlur

__all__ = [
    'CamVidDataset',
    'EvalCenterCrop',
    'LoadSegAnnotations',
    'LoadSegImage',
    'RandomGaussianBlur',
]
