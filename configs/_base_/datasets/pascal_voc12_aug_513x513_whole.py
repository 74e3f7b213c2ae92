# As pascal_voc12_aug_513x513.py, but validated on whole images at their own size, mmseg's protocol.
_base_ = './pascal_voc12_aug_513x513.py'
val_pipeline = [
    dict(type='LoadSegImage'),
    dict(type='Resize', scale=(2052, 513), keep_ratio=True),
    # Labels stay at their own size: predictions are resized to them.
    dict(type='LoadSegAnnotations', num_classes=21),
    dict(type='PackSegInputs'),
]
# mmseg's inferencers look for these names, so that the checks of the other pipelines are left out.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2052, 513), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
