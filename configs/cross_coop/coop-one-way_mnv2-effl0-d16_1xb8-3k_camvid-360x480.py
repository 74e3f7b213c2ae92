# The conventional method: MobileNetV2, on top, sends to EfficientNet-Lite0.
_base_ = './cross-coop_mnv2-effl0-d16_1xb8-3k_camvid-360x480.py'
model = dict(
    # one_way, spelt so that it survives mmengine's sorting of the networks in the configs it writes
    decode_head=dict(topology=dict(_delete_=True, bottom=['top'])),
    test_cfg=dict(output='bottom'),
)
