# Maps lie with the channels last in memory, which convolutions take less time for: on a CPU, and on a GPU in bfloat16.
_base_ = './default_runtime.py'
custom_hooks = [
    dict(type='RecordIoUHook'),
    dict(type='NonFiniteLossHook'),
    dict(type='CountSkippedStepsHook'),
    dict(type='ChannelsLastHook'),
]
