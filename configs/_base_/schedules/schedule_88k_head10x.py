# The other reading of the paper's learning rate: that of the backbone, with ten times as much for
# the head and a weight decay of 5e-4. It goes with a loss divided by the batch size, which the
# config of the model sets.
_base_ = './schedule_88k.py'
optim_wrapper = dict(
    optimizer=dict(weight_decay=5e-4),
    paramwise_cfg=dict(
        _delete_=True, custom_keys=dict(backbone=dict(lr_mult=1.0), decode_head=dict(lr_mult=10.0))
    ),
)
