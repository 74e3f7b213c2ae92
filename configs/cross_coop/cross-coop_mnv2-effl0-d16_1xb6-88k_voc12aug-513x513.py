_base_ = [
    '../_base_/models/cross-coop_mnv2-effl0-d16.py',
    '../_base_/datasets/pascal_voc12_aug_513x513.py',
    '../_base_/schedules/schedule_88k.py',
    '../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(513, 513)),
    decode_head=dict(num_classes=21),
)
