"""Models: backbones, necks, attentions, cooperation, decode heads and segmentors."""

from .attentions import ChannelPoolAttention, PoolUnit, SpatialPoolAttention
from .backbones import CoopBackbone, Xception
from .cooperation import ConcatFusion, Cooperation, CooperativePaths, GatedFusion, SumFusion
from .data_preprocessor import CoopDataPreProcessor
from .decode_heads import (
    CoopHead,
    CrossCoopASPPHead,
    CrossCoopDPAHead,
    DeepLabV3PlusHead,
    DPAHead,
)
from .necks import CoopNeck
from .segmentors import CoopTTAModel, CrossCoopEncoderDecoder

__all__ = [
    'ChannelPoolAttention',
    'ConcatFusion',
    'CoopBackbone',
    'CoopDataPreProcessor',
    'CoopHead',
    'CoopNeck',
    'CoopTTAModel',
    'Cooperation',
    'CooperativePaths',
    'CrossCoopASPPHead',
    'CrossCoopDPAHead',
    'CrossCoopEncoderDecoder',
    'DPAHead',
    'DeepLabV3PlusHead',
    'GatedFusion',
    'PoolUnit',
    'SpatialPoolAttention',
    'SumFusion',
    'Xception',
]
