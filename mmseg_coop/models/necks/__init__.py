"""Necks."""

from .coop_neck import CoopNeck

__all__ = ['CoopNeck']
