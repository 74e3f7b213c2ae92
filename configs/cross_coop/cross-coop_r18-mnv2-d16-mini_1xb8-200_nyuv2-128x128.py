# Trains within a minute or two on a CPU, from scratch, on the drawn scenes of
# tools/dataset_converters/make_mini_dataset.py --layout rgbd, each network on an image of its own.
_base_ = [
    '../_base_/models/cross-coop_r18-mnv2-d16-mini.py',
    '../_base_/datasets/nyuv2_480x640.py',
    '../_base_/schedules/schedule_3k.py',
    '../_base_/default_runtime.py',
]
data_root = 'data/mini_rgbd'
# Those that are drawn.
metainfo = dict(classes=('wall', 'floor', 'chair', 'picture', 'floor mat', 'box'))
crop_size = (128, 128)
train_pipeline = [
    dict(type='LoadSegImage'),
    dict(type='LoadSegAnnotations', num_classes=6),
    dict(type='LoadSecondImage', folder=('RGB', 'Depth'), dtype='uint16'),
    dict(type='RandomResize', scale=(128, 128), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
val_pipeline = [
    dict(type='LoadSegImage'),
    dict(type='LoadSecondImage', folder=('RGB', 'Depth'), dtype='uint16'),
    dict(type='LoadSegAnnotations', num_classes=6),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=val_pipeline))
test_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
model = dict(
    data_preprocessor=dict(
        type='CoopDataPreProcessor',
        mean=[127.5, 127.5, 127.5, 3000.0],
        std=[64.0, 64.0, 64.0, 1500.0],
        size=crop_size,
    ),
    # MobileNetV2 takes three channels.
    backbone=dict(inputs=dict(top=(0, 1, 2), bottom=(3, 3, 3))),
    decode_head=dict(num_classes=6),
)
train_cfg = dict(max_iters=200, val_interval=100)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=200, by_epoch=False),
]
optim_wrapper = dict(
    optimizer=dict(lr=0.1),
    # Nothing is pretrained, so the backbones learn at the full rate.
    paramwise_cfg=dict(_delete_=True),
)
default_hooks = dict(checkpoint=dict(interval=100))
