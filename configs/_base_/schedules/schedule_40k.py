# 400 epochs of the 795 images of NYUv2, or of the 784 of MFNet, in batches of 8.
_base_ = './schedule_88k.py'
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=40000, by_epoch=False),
]
train_cfg = dict(max_iters=40000, val_interval=2000)
default_hooks = dict(checkpoint=dict(interval=2000))
