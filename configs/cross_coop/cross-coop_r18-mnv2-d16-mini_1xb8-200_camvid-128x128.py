# Trains within a minute or two on a CPU, from scratch, on the drawn street scenes of
# tools/dataset_converters/make_mini_dataset.py --layout camvid.
_base_ = [
    '../_base_/models/cross-coop_r18-mnv2-d16-mini.py',
    '../_base_/datasets/camvid_180x240.py',
    '../_base_/schedules/schedule_3k.py',
    '../_base_/default_runtime.py',
]
data_root = 'data/mini_camvid'
crop_size = (128, 128)
train_pipeline = [
    dict(type='LoadSegImage'),
    dict(type='LoadSegAnnotations', num_classes=11),
    dict(type='RandomResize', scale=(128, 128), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
val_pipeline = [
    dict(type='LoadSegImage'),
    dict(type='LoadSegAnnotations', num_classes=11),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=8, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=val_pipeline))
test_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
model = dict(data_preprocessor=dict(size=crop_size))
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
