# DeepLabV3+ on ResNet-101, a baseline of the paper.
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
            r101=dict(
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
    ),
    decode_head=dict(
        type='CrossCoopASPPHead',
        networks=dict(r101=dict(in_channels=2048, low_level_in_channels=256)),
        channels=256,
        dilations=(1, 6, 12, 18),
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=norm_cfg,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
