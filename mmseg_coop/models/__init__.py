"""Models: backbones, cooperation, decode heads and segmentors."""

from .backbones import CoopBackbone, Xception
from .cooperation import ConcatFusion, Cooperation, CooperativePaths, GatedFusion, SumFusion
from .decode_heads import CrossCoopASPPHead
from .segmentors import CoopTTAModel, CrossCoopEncoderDecoder

__all__ = [
    'ConcatFusion',
    'CoopBackbone',
    'CoopTTAModel',
    'Cooperation',
    'CooperativePaths',
    'CrossCoopASPPHead',
    'CrossCoopEncoderDecoder',
    'GatedFusion',
    'SumFusion',
    'Xception',
]
