# The conventional method with two networks of the same kind, as its authors first proposed it.
_base_ = './coop-one-way_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
model = dict(
    backbone=dict(
        networks=dict(
            top=dict(
                _delete_=True,
                type='ResNet',
                depth=101,
                strides=(1, 2, 2, 1),
                dilations=(1, 1, 1, 2),
                contract_dilation=True,
                out_indices=(0, 3),
                norm_cfg=dict(type='SyncBN', requires_grad=True),
                init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'),
            ),
        ),
        normalize=None,
    ),
)
