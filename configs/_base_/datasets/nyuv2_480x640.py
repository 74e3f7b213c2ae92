# Colour, and depth in millimetres as fourth channel.
dataset_type = 'NYUv2Dataset'
data_root = 'data/nyuv2'
crop_size = (480, 640)
load_image = dict(type='LoadSegImage')
load_depth = dict(type='LoadSecondImage', folder=('RGB', 'Depth'), dtype='uint16')
load_labels = dict(type='LoadSegAnnotations', num_classes=40)
train_pipeline = [
    load_image,
    load_labels,
    # Ahead of the depth, which is no colour.
    dict(type='PhotoMetricDistortion'),
    load_depth,
    dict(type='RandomResize', scale=(640, 480), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
val_pipeline = [load_image, load_depth, load_labels, dict(type='PackSegInputs')]
# mmseg's inferencers look for these names, so that the checks of the other pipelines are left out.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    load_depth,
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    load_image,
    load_depth,
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.75, 1.0, 1.25)],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [load_labels],
            [dict(type='PackSegInputs')],
        ],
    ),
]
data_prefix = dict(img_path='RGB', seg_map_path='Label')
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=data_prefix,
        ann_file='train.txt',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=data_prefix,
        ann_file='test.txt',
        pipeline=val_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=data_prefix,
        ann_file='test.txt',
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='CoopIoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
