# Deep mutual learning: no paths, but each network learns from the other's output as well.
_base_ = './coop-none_mnv2-effl0-d16_1xb8-3k_camvid-360x480.py'
model = dict(
    decode_head=dict(
        transfer=[
            dict(teacher='bottom', student='top'),
            dict(teacher='top', student='bottom'),
        ],
    ),
)
