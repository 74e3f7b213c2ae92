"""Segmentors."""

from .coop_tta_model import CoopTTAModel
from .cross_coop_encoder_decoder import CrossCoopEncoderDecoder

__all__ = ['CoopTTAModel', 'CrossCoopEncoderDecoder']
