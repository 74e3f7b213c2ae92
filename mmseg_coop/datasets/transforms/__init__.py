"""Transforms of images and labels."""

from .blur import RandomGaussianBlur
from .crop import EvalCenterCrop
from .loading import LoadSegAnnotations, LoadSegImage

__all__ = ['EvalCenterCrop', 'LoadSegAnnotations', 'LoadSegImage', 'RandomGaussianBlur']
