"""Cooperative paths between networks."""

from .cooperation import Cooperation, Steps, run_in_step
from .fusions import ConcatFusion, Fusion, GatedFusion, SumFusion
from .paths import CooperativePaths, resolve_topology

__all__ = [
    'ConcatFusion',
    'Cooperation',
    'CooperativePaths',
    'Fusion',
    'GatedFusion',
    'Steps',
    'SumFusion',
    'resolve_topology',
    'run_in_step',
]
