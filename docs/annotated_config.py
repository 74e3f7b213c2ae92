"""The paper's method on PASCAL VOC 2012, with every part explained.

Once resolved, this is configs/cross_coop/cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py.
"""

# Inherited parts; what is set below is merged into them. The first holds train_pipeline,
# val_pipeline, the three dataloaders (batches of 6 crops of 513x513; validation on the centre crop)
# and CoopIoUMetric; the second what every run needs: custom_imports, which registers this package,
# hooks, logging, the visualizer, and CoopTTAModel for `test.py --tta`.
_base_ = [
    '../configs/_base_/datasets/pascal_voc12_aug_513x513.py',
    '../configs/_base_/default_runtime.py',
]

# Batch norm over the batches of all processes; with a single process it works as plain BN.
norm_cfg = dict(type='SyncBN', requires_grad=True)
data_preprocessor = dict(  # runs on the GPU, once for both networks
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],  # of ImageNet, in RGB from 0 to 255
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,  # images are read as BGR
    pad_val=0,
    seg_pad_val=255,  # the label of the padding, ignored by loss and metric
)
model = dict(
    type='CrossCoopEncoderDecoder',  # evaluates every network and their ensemble in one pass
    data_preprocessor=dict(size=(513, 513), **data_preprocessor),  # what is smaller is padded
    backbone=dict(
        type='CoopBackbone',  # runs each network's backbone on the image
        networks=dict(  # any number, under any names
            top=dict(
                type='Xception',
                depth=65,
                output_stride=16,
                out_indices=(1, 4),  # the low-level feature at stride 4, and the output
                norm_cfg=dict(type='SyncBN', eps=1e-3, requires_grad=True),  # the weights' eps
                init_cfg=dict(type='Pretrained', checkpoint='timm://xception65.tf_in1k'),
            ),
            bottom=dict(
                type='ResNet',
                depth=101,
                strides=(1, 2, 2, 1),  # with the dilation of the last stage: output stride 16
                dilations=(1, 1, 1, 2),
                contract_dilation=True,
                out_indices=(0, 3),
                norm_cfg=norm_cfg,
                init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'),
            ),
        ),
        # Networks whose weights need another normalisation than the data preprocessor's.
        normalize=dict(top=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])),
    ),
    decode_head=dict(
        type='CrossCoopASPPHead',  # ASPP and decoder of each network, and the paths between them
        networks=dict(  # what differs between the networks; left out, the channels are found
            top=dict(in_channels=2048, low_level_in_channels=256),
            bottom=dict(in_channels=2048, low_level_in_channels=256),
        ),
        channels=256,  # of every ASPP branch and of the decoder
        dilations=(1, 6, 12, 18),  # 1x1 and three 3x3; at stride 8: 1, 12, 24, 36
        topology='cross',  # or 'none', or who receives from whom: dict(bottom=['top'])
        connections=['input', 'aspp', 'aspp_output', 'low_level', 'decoder'],  # all sites
        fusion=dict(type='SumFusion'),  # or ConcatFusion, GatedFusion
        dropout_ratio=0.1,  # after the ASPP output
        num_classes=21,
        norm_cfg=norm_cfg,
        # Of each network; logged as decode.top.loss_ce and decode.bottom.loss_ce (equation 1).
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    train_cfg=dict(),
    # Whole images or 'slide'; the output that becomes the prediction and chooses the checkpoint.
    test_cfg=dict(mode='whole', output='top'),
)

optim_wrapper = dict(
    type='OptimWrapper',  # BFloat16OptimWrapper, or train.py --amp, for mixed precision
    optimizer=dict(type='SGD', lr=0.007, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),  # pretrained: a tenth
)
# The rate falls as (1 - iteration / 87999) ** 0.9, from 0 on; `end` goes with max_iters.
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=88000, by_epoch=False),
]
# 50 epochs of 10,582 images in batches of 6. This loop resumes with the very next batch.
train_cfg = dict(type='ExactIterBasedTrainLoop', max_iters=88000, val_interval=4400)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='AtomicCheckpointHook',  # a killed run leaves no half-written file
        by_epoch=False,
        interval=4400,
        save_best='mIoU',  # of test_cfg.output; top/mIoU, bottom/mIoU, ensemble/mIoU work as well
        max_keep_ckpts=2,
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),  # pictures for test.py --show-dir
)
