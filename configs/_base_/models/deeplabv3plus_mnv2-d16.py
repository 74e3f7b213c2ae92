# DeepLabV3+ on MobileNetV2, the top network of the pair alone.
_base_ = './cross-coop_mnv2-effl0-d16.py'
model = dict(
    backbone=dict(
        networks=dict(_delete_=True, mnv2={{_base_.model.backbone.networks.top}}),
        normalize=None,
    ),
    decode_head=dict(
        networks=dict(_delete_=True, mnv2={{_base_.model.decode_head.networks.top}}),
    ),
    test_cfg=dict(output='mnv2'),
)
