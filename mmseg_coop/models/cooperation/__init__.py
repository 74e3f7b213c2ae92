"""Cooperative paths between networks."""

from .cooperation import Cooperation, Steps, run_in_step
from .fusions import ConcatFusion, Fusion, GatedFusion, SumFusion
from .networks import ENSEMBLE, check_network_names
from .paths import CooperativePaths, resolve_topology

__all__ = [
    'ENSEMBLE',
    'ConcatFusion',
    'Cooperation',
    'CooperativePaths',
    'Fusion',
    'GatedFusion',
    'Steps',
    'SumFusion',
    'check_network_names',
    'resolve_topology',
    'run_in_step',
]
