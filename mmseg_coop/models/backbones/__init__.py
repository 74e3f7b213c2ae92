"""Backbones."""

from .coop_backbone import CoopBackbone
from .xception import Xception

__all__ = ['CoopBackbone', 'Xception']
