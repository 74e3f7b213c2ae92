_base_ = [
    '../_base_/models/deeplabv3plus_mnv2-d16.py',
    '../_base_/datasets/camvid_180x240.py',
    '../_base_/schedules/schedule_600.py',
    '../_base_/channels_last_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(180, 240)),
    decode_head=dict(num_classes=11),
)
