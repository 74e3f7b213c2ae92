# The paper's method with the other reading of its learning rate.
_base_ = [
    '../_base_/models/cross-coop_x65-r101-d16.py',
    '../_base_/datasets/pascal_voc12_aug_513x513.py',
    '../_base_/schedules/schedule_88k_head10x.py',
    '../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(513, 513)),
    decode_head=dict(
        num_classes=21,
        loss_decode=dict(loss_weight=1 / 6),  # divided by the batch size
    ),
    test_cfg=dict(output='top'),
)
