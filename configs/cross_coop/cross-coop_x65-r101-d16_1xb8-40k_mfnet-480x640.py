# Xception-65 reads the colours, ResNet-101 the thermal image.
_base_ = [
    '../_base_/models/cross-coop_x65-r101-d16.py',
    '../_base_/datasets/mfnet_480x640.py',
    '../_base_/schedules/schedule_40k.py',
    '../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(
        type='CoopDataPreProcessor',
        mean=[123.675, 116.28, 103.53, 127.5],
        std=[58.395, 57.12, 57.375, 64.0],
        size=(480, 640),
    ),
    # Three times, since the weights were trained on three channels.
    backbone=dict(inputs=dict(top=(0, 1, 2), bottom=(3, 3, 3))),
    decode_head=dict(num_classes=9),
)
