"""Backbones."""

from .coop_backbone import CoopBackbone

__all__ = ['CoopBackbone']
