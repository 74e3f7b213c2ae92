# DPANet on ResNet-101 at output stride 8.
_base_ = './dpanet_r50-d8.py'
model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet101_v1c')
    )
)
