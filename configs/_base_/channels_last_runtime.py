# Maps lie with the channels last in memory, for which convolutions take less time.
_base_ = './default_runtime.py'
custom_hooks = [
    dict(type='RecordIoUHook'),
    dict(type='NonFiniteLossHook'),
    dict(type='CountSkippedStepsHook'),
    dict(type='ChannelsLastHook'),
]
