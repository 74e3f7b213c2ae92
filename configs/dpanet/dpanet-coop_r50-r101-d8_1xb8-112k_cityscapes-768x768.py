_base_ = './dpanet-coop_x65-r101-d8_1xb8-112k_cityscapes-768x768.py'
model = dict(
    backbone=dict(
        networks=dict(
            top=dict(
                _delete_=True,
                type='ResNetV1c',
                depth=50,
                strides=(1, 2, 1, 1),
                dilations=(1, 1, 2, 4),
                contract_dilation=True,
                out_indices=(3,),
                norm_cfg=dict(type='SyncBN', requires_grad=True),
                init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet50_v1c'),
            ),
        ),
        normalize=None,
    ),
)
