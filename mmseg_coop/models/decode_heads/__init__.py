"""Decode heads."""

from .coop_head import CoopHead
from .cooperative_decode_head import CooperativeDecodeHead
from .cross_coop_heads import CrossCoopASPPHead, CrossCoopDPAHead
from .deeplabv3plus_head import DeepLabV3PlusHead
from .dpa_head import DPAHead

__all__ = [
    'CoopHead',
    'CooperativeDecodeHead',
    'CrossCoopASPPHead',
    'CrossCoopDPAHead',
    'DPAHead',
    'DeepLabV3PlusHead',
]
