# Without pretrained weights (table 3).
_base_ = './dpanet_r50-d8_1xb8-112k_cityscapes-768x768.py'
model = dict(backbone=dict(init_cfg=None))
