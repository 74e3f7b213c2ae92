_base_ = [
    '../_base_/models/deeplabv3plus_x65-d16.py',
    '../_base_/datasets/cityscapes_768x768.py',
    '../_base_/schedules/schedule_99k.py',
    '../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(768, 768)),
    decode_head=dict(num_classes=19),
)
