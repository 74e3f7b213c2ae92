# Colour, and thermal infrared as fourth channel, from one file.
dataset_type = 'MFNetDataset'
data_root = 'data/mfnet'
crop_size = (480, 640)
load_image = dict(type='LoadSegImage', color_type='unchanged')
load_labels = dict(type='LoadSegAnnotations', num_classes=9)
train_pipeline = [
    load_image,
    load_labels,
    dict(type='RandomResize', scale=(640, 480), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
val_pipeline = [load_image, load_labels, dict(type='PackSegInputs')]
# mmseg's inferencers look for these names, so that the checks of the other pipelines are left out.
test_pipeline = [
    dict(type='LoadImageFromFile', color_type='unchanged'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    load_image,
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
data_prefix = dict(img_path='images', seg_map_path='labels')
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
        ann_file='val.txt',
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
