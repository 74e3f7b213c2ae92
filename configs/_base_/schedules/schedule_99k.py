# 200 epochs of the 2,975 images of Cityscapes in batches of 6.
_base_ = './schedule_88k.py'
optim_wrapper = dict(optimizer=dict(lr=0.035))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=99000, by_epoch=False),
]
train_cfg = dict(max_iters=99000, val_interval=4950)
default_hooks = dict(checkpoint=dict(interval=4950))
