from __future__ import annotations

from typing import ClassVar

import torch

from tests.models.base import SiteSuite


class TestDeepLabV3PlusHead(SiteSuite):
    type = 'DeepLabV3PlusHead'
    arguments: ClassVar = dict(
        in_channels=12, low_level_in_channels=5, low_level_channels=4, channels=8, num_classes=3
    )
    variants: ClassVar = dict(
        plain={},
        separable=dict(separable=True, num_decoder_convs=3),
        few=dict(dilations=(1,), num_decoder_convs=1, align_corners=True, dropout_ratio=0),
    )
    sizes = ((6, 4), (5, 7), (1, 1))
    refusals = (
        (dict(dropout_ratio=1.5), 'dropout_ratio=1.5 is no fraction'),
        (dict(dilations=[]), 'dilations=.* holds no numbers'),
        (dict(dilations=(1, 0)), 'dilations=.*0.* is not a positive integer'),
        (dict(low_level_in_channels=0), 'low_level_in_channels=0 is not a positive integer'),
        (dict(low_level_channels=-4), 'low_level_channels=-4 is not a positive integer'),
        (dict(num_decoder_convs=0), 'num_decoder_convs=0 is not a positive integer'),
        (dict(loss_decode=[]), 'loss_decode=.* leaves nothing to train'),
    )

    def inputs(self, size, batch=2):
        height, width = size
        low_level = torch.randn(batch, 5, 2 * height + 1, 2 * width)
        return ([low_level, torch.randn(batch, 12, *size)],)

    def shapes(self, model, size, batch):
        return [(batch, 3, 2 * size[0] + 1, 2 * size[1])]
