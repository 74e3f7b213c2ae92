"""Visualizers."""

from .coop_local_visualizer import CoopLocalVisualizer

__all__ = ['CoopLocalVisualizer']
