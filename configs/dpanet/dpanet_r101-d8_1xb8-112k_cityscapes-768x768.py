_base_ = [
    '../_base_/models/dpanet_r101-d8.py',
    '../_base_/datasets/cityscapes_768x768.py',
    '../_base_/schedules/schedule_112k.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=8)
model = dict(
    data_preprocessor=dict(size=(768, 768)),
    decode_head=dict(num_classes=19),
    test_cfg=dict(mode='slide', crop_size=(768, 768), stride=(512, 512)),
)
