_base_ = [
    '../_base_/models/dpanet_r101-d8.py',
    '../_base_/datasets/pascal_voc12_aug_480x480.py',
    '../_base_/schedules/schedule_119k.py',
    '../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(480, 480)),
    decode_head=dict(num_classes=21),
    test_cfg=dict(mode='slide', crop_size=(480, 480), stride=(320, 320)),
)
