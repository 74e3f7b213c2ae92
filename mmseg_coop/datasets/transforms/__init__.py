"""Transforms of images and labels."""

from .blur import RandomGaussianBlur
from .crop import EvalCenterCrop
from .loading import LoadSegAnnotations, LoadSegImage
from .second_image import LoadSecondImage

__all__ = [
    'EvalCenterCrop',
    'LoadSecondImage',
    'LoadSegAnnotations',
    'LoadSegImage',
    'RandomGaussianBlur',
]
