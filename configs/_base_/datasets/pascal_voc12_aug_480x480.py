# PASCAL VOC 2012 with the augmented training set, as DPANet takes it: the long side at 520.
_base_ = './pascal_voc12_aug_513x513.py'
crop_size = (480, 480)
load_image = dict(type='LoadSegImage')
load_labels = dict(type='LoadSegAnnotations', num_classes=21)
train_pipeline = [
    load_image,
    load_labels,
    dict(type='RandomResize', scale=(520, 520), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
val_pipeline = [
    load_image,
    dict(type='Resize', scale=(520, 520), keep_ratio=True),
    # Labels stay at their own size: predictions are resized to them.
    load_labels,
    dict(type='PackSegInputs'),
]
# mmseg's inferencers look for these names, so that the checks of the other pipelines are left out.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(520, 520), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_set = dict(
    type='PascalVOCDataset',
    data_root='data/VOCdevkit/VOC2012',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    ann_file='ImageSets/Segmentation/train.txt',
    pipeline=train_pipeline,
)
augmented_set = dict(
    type='PascalVOCDataset',
    data_root='data/VOCdevkit/VOC2012',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
    ann_file='ImageSets/Segmentation/aug.txt',
    pipeline=train_pipeline,
)
train_dataloader = dict(batch_size=16, dataset=dict(datasets=[train_set, augmented_set]))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
