"""Decode heads."""

from .coop_head import BaseCoopHead, SteppedDecodeHead
from .cross_coop_aspp_head import CrossCoopASPPHead, DeepLabV3PlusHead
from .cross_coop_dpa_head import CrossCoopDPAHead
from .dpa_head import DPAHead

__all__ = [
    'BaseCoopHead',
    'CrossCoopASPPHead',
    'CrossCoopDPAHead',
    'DPAHead',
    'DeepLabV3PlusHead',
    'SteppedDecodeHead',
]
