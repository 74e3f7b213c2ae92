from __future__ import annotations

import pytest
import torch

from mmseg_coop.evaluation import CoopIoUMetric
from mmseg_coop.models import (
    CoopBackbone,
    CrossCoopASPPHead,
    CrossCoopDPAHead,
    DPAHead,
    Xception,
)


def aspp(**changed):
    own = dict(in_channels=4, low_level_in_channels=4)
    return CrossCoopASPPHead(
        **dict(networks=dict(top=own, bottom=own), channels=4, num_classes=3) | changed
    )


def dpa(**changed):
    own = dict(in_channels=4)
    return CrossCoopDPAHead(
        **dict(networks=dict(top=own, bottom=own), channels=4, num_classes=3) | changed
    )


def backbone(**normalize):
    return CoopBackbone(
        networks=dict(top=dict(type='MobileNetV2', widen_factor=0.1)),
        normalize=dict(top=normalize),
        input_normalize=dict(mean=[0.0], std=[1.0]),
    )


@pytest.mark.parametrize(
    ('build', 'changed', 'message'),
    [
        (aspp, dict(channels=0), "network 'top': channels=0 is not a positive integer"),
        (aspp, dict(num_classes=-1), 'num_classes=-1 is not a positive integer'),
        (aspp, dict(dropout_ratio=1.5), 'dropout_ratio=1.5 is no fraction'),
        (aspp, dict(dilations=[]), 'dilations=.* holds no numbers'),
        (aspp, dict(dilations=(1, 0)), 'dilations=.*0.* is not a positive integer'),
        (aspp, dict(low_level_channels=-4), 'low_level_channels=-4 is not a positive'),
        (aspp, dict(num_decoder_convs=0), 'num_decoder_convs=0 is not a positive'),
        (aspp, dict(loss_decode=[]), 'loss_decode=.* leaves nothing to train'),
        (aspp, dict(fusion=dict(channels=4)), 'fusion=.* has no type'),
        (dpa, dict(channels=0), "network 'top': channels=0 is not a positive integer"),
        (dpa, dict(networks=dict(left=dict(in_channels=0))), "network 'left': in_channels=0"),
        (DPAHead, dict(in_channels=4, channels=4, num_classes=0), 'num_classes=0 is not a pos'),
        (Xception, dict(in_channels=0), 'in_channels=0 is not a positive integer'),
        (backbone, dict(mean=[0.0], std=[0.0]), 'std=.* divides'),
        (CoopIoUMetric, dict(iou_metrics=['mIou']), 'iou_metrics=.*mIou.* some of'),
        (CoopIoUMetric, dict(iou_metrics=[]), 'iou_metrics=.* some of'),
        (CoopIoUMetric, dict(beta=0), 'beta=0 has to be greater than 0'),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(build, changed, message):
    with torch.device('meta'), pytest.raises(ValueError, match=message):
        build(**changed)
