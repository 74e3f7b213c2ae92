default_scope = 'mmseg'
custom_imports = dict(imports=['mmseg_coop'], allow_failed_imports=False)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='CoopLocalVisualizer', vis_backends=vis_backends, name='visualizer')
custom_hooks = [
    dict(type='RecordIoUHook'),
    dict(type='NonFiniteLossHook'),
    dict(type='CountSkippedStepsHook'),
]
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False

tta_model = dict(type='CoopTTAModel')
