# Fine-tuning of light networks on a small dataset.
_base_ = './schedule_88k.py'
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=3000, by_epoch=False),
]
train_cfg = dict(max_iters=3000, val_interval=500)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=500))
