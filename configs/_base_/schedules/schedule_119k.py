# 180 epochs of the 10,582 images of VOC 2012 (augmented) in batches of 16.
_base_ = './schedule_112k.py'
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=119000, by_epoch=False),
]
train_cfg = dict(max_iters=119000, val_interval=5950)
default_hooks = dict(checkpoint=dict(interval=5950))
