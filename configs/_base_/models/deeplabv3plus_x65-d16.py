# DeepLabV3+ on Xception-65, a baseline of the paper.
norm_cfg = dict(type='SyncBN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[127.5, 127.5, 127.5],
    std=[127.5, 127.5, 127.5],
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
            x65=dict(
                type='Xception',
                depth=65,
                output_stride=16,
                out_indices=(1, 4),
                norm_cfg=dict(type='SyncBN', eps=1e-3, requires_grad=True),
                init_cfg=dict(type='Pretrained', checkpoint='timm://xception65.tf_in1k'),
            ),
        ),
    ),
    decode_head=dict(
        type='CrossCoopASPPHead',
        networks=dict(x65=dict(in_channels=2048, low_level_in_channels=256)),
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
