# 300 epochs of the 2,975 images of Cityscapes in batches of 8.
_base_ = './schedule_88k.py'
optim_wrapper = dict(
    optimizer=dict(lr=0.003),
    # As in the toolkit the paper names: the head learns at ten times the rate of the backbone.
    paramwise_cfg=dict(_delete_=True, custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=112000, by_epoch=False),
]
train_cfg = dict(max_iters=112000, val_interval=5600)
default_hooks = dict(checkpoint=dict(interval=5600))
