# Two narrow networks that learn from scratch within minutes on a CPU.
norm_cfg = dict(type='BN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[127.5, 127.5, 127.5],
    std=[64.0, 64.0, 64.0],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
)
model = dict(
    type='CrossCoopEncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='CoopBackbone',
        networks=dict(
            top=dict(
                type='ResNetV1c',
                depth=18,
                stem_channels=16,
                base_channels=16,
                strides=(1, 2, 2, 1),
                dilations=(1, 1, 1, 2),
                contract_dilation=True,
                out_indices=(0, 3),
                norm_cfg=norm_cfg,
            ),
            bottom=dict(
                type='MobileNetV2',
                widen_factor=0.5,
                strides=(1, 2, 2, 2, 1, 1, 1),
                dilations=(1, 1, 1, 1, 1, 2, 2),
                out_indices=(1, 6),
                norm_cfg=norm_cfg,
            ),
        ),
    ),
    decode_head=dict(
        type='CrossCoopASPPHead',
        networks=dict(
            top=dict(in_channels=128, low_level_in_channels=16),
            bottom=dict(in_channels=160, low_level_in_channels=16),
        ),
        channels=32,
        low_level_channels=16,
        # Rates for the 8x8 map that a 128x128 image gives at output stride 16.
        dilations=(1, 2, 3, 4),
        topology='cross',
        fusion=dict(type='SumFusion'),
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole', output='ensemble'),
)
