"""Decode heads."""

from .coop_head import CoopHead, CrossCoopASPPHead, CrossCoopDPAHead
from .cooperative_decode_head import CooperativeDecodeHead
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
