# A lighter pair: ResNet-18 and Xception-41 at output stride 16, which end in different channels.
_base_ = './cross-coop_x65-r101-d16.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(
        networks=dict(
            _delete_=True,
            top=dict(
                type='ResNet',
                depth=18,
                strides=(1, 2, 2, 1),
                dilations=(1, 1, 1, 2),
                contract_dilation=True,
                out_indices=(0, 3),
                norm_cfg=norm_cfg,
                init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
            ),
            bottom=dict(
                type='Xception',
                depth=41,
                output_stride=16,
                out_indices=(1, 4),
                norm_cfg=dict(type='SyncBN', eps=1e-3, requires_grad=True),
                init_cfg=dict(type='Pretrained', checkpoint='timm://xception41.tf_in1k'),
            ),
        ),
        normalize=dict(
            _delete_=True, bottom=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
        ),
    ),
    decode_head=dict(
        networks=dict(
            _delete_=True,
            top=dict(in_channels=512, low_level_in_channels=64),
            bottom=dict(in_channels=2048, low_level_in_channels=256),
        ),
        separable=True,
    ),
)
