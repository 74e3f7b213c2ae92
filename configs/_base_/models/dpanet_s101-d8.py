# DPANet on ResNeSt-101 at output stride 8.
_base_ = './dpanet_r50-d8.py'
model = dict(
    backbone=dict(
        type='ResNeSt',
        depth=101,
        stem_channels=128,
        radix=2,
        reduction_factor=4,
        avg_down_stride=True,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnest101'),
    )
)
