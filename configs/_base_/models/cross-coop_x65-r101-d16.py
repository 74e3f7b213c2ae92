# The paper's pair: Xception-65 on top, ResNet-101 at the bottom, paths at all sites both ways.
norm_cfg = dict(type='SyncBN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
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
                type='Xception',
                depth=65,
                output_stride=16,
                out_indices=(1, 4),
                norm_cfg=dict(type='SyncBN', eps=1e-3, requires_grad=True),
                init_cfg=dict(type='Pretrained', checkpoint='timm://xception65.tf_in1k'),
            ),
            bottom=dict(
                type='ResNet',
                depth=101,
                strides=(1, 2, 2, 1),
                dilations=(1, 1, 1, 2),
                contract_dilation=True,
                out_indices=(0, 3),
                norm_cfg=norm_cfg,
                init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'),
            ),
        ),
        # Xception's weights were trained with another normalisation than ResNet's.
        normalize=dict(top=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])),
    ),
    decode_head=dict(
        type='CrossCoopASPPHead',
        networks=dict(
            top=dict(in_channels=2048, low_level_in_channels=256),
            bottom=dict(in_channels=2048, low_level_in_channels=256),
        ),
        channels=256,
        dilations=(1, 6, 12, 18),
        topology='cross',
        connections=['input', 'aspp', 'aspp_output', 'low_level', 'decoder'],
        fusion=dict(type='SumFusion'),
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=norm_cfg,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole', output='ensemble'),
)
