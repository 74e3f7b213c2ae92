_base_ = [
    '../_base_/models/cross-coop_mnv2-effl0-d16.py',
    '../_base_/datasets/camvid_360x480.py',
    '../_base_/schedules/schedule_3k_bf16.py',
    '../_base_/channels_last_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=(360, 480)),
    decode_head=dict(num_classes=11),
)
