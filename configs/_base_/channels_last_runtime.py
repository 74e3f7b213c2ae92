# Maps lie with the channels last in memory, which convolutions in bfloat16 like best.
_base_ = './default_runtime.py'
custom_hooks = [
    dict(type='RecordIoUHook'),
    dict(type='NonFiniteLossHook'),
    dict(type='CountSkippedStepsHook'),
    dict(type='ChannelsLastHook'),
]
