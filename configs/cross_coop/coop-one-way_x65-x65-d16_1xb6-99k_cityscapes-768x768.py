# The conventional method with two networks of the same kind, as its authors first proposed it.
_base_ = './coop-one-way_x65-r101-d16_1xb6-99k_cityscapes-768x768.py'
xception_normalize = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(
    data_preprocessor=xception_normalize,
    backbone=dict(
        networks=dict(
            bottom=dict(
                _delete_=True,
                type='Xception',
                depth=65,
                output_stride=16,
                out_indices=(1, 4),
                norm_cfg=dict(type='SyncBN', eps=1e-3, requires_grad=True),
                init_cfg=dict(type='Pretrained', checkpoint='timm://xception65.tf_in1k'),
            ),
        ),
        normalize=None,
    ),
)
