# Two light networks: MobileNetV2 and EfficientNet-Lite0 at output stride 16.
norm_cfg = dict(type='BN', requires_grad=True)
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
            top=dict(
                type='MobileNetV2',
                widen_factor=1.0,
                strides=(1, 2, 2, 2, 1, 1, 1),
                dilations=(1, 1, 1, 1, 1, 2, 2),
                out_indices=(1, 6),
                norm_cfg=norm_cfg,
                init_cfg=dict(type='Pretrained', checkpoint='pretrained/mobilenet_v2.pth'),
            ),
            bottom=dict(
                type='TIMMBackbone',
                # The weights were trained with TensorFlow's padding.
                model_name='tf_efficientnet_lite0',
                features_only=True,
                pretrained=False,
                output_stride=16,
                out_indices=(1, 4),
                init_cfg=dict(type='Pretrained', checkpoint='pretrained/efficientnet_lite0.pth'),
            ),
        ),
        normalize=dict(bottom=dict(mean=[127.0, 127.0, 127.0], std=[128.0, 128.0, 128.0])),
    ),
    decode_head=dict(
        type='CrossCoopASPPHead',
        networks=dict(
            top=dict(in_channels=320, low_level_in_channels=24),
            bottom=dict(in_channels=320, low_level_in_channels=24),
        ),
        channels=128,
        dilations=(1, 6, 12, 18),
        # Dense 3x3 convolutions would cost more than both backbones together.
        separable=True,
        topology='cross',
        fusion=dict(type='SumFusion'),
        num_classes=19,
        norm_cfg=norm_cfg,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole', output='ensemble'),
)
