"""Decode heads."""

from .coop_head import BaseCoopHead, SteppedDecodeHead
from .cross_coop_aspp_head import CrossCoopASPPHead, DeepLabV3PlusHead

__all__ = ['BaseCoopHead', 'CrossCoopASPPHead', 'DeepLabV3PlusHead', 'SteppedDecodeHead']
