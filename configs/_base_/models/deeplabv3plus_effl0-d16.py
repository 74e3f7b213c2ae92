# DeepLabV3+ on EfficientNet-Lite0, the bottom network of the pair alone.
_base_ = './cross-coop_mnv2-effl0-d16.py'
model = dict(
    backbone=dict(
        networks=dict(_delete_=True, effl0={{_base_.model.backbone.networks.bottom}}),
        normalize=dict(_delete_=True, effl0={{_base_.model.backbone.normalize.bottom}}),
    ),
    decode_head=dict(
        networks=dict(_delete_=True, effl0={{_base_.model.decode_head.networks.bottom}}),
    ),
    test_cfg=dict(output='effl0'),
)
