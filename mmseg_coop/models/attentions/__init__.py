"""Attention modules."""

from .channel_pool_attention import ChannelPoolAttention
from .pool_unit import PoolUnit
from .spatial_pool_attention import SpatialPoolAttention

__all__ = ['ChannelPoolAttention', 'PoolUnit', 'SpatialPoolAttention']
