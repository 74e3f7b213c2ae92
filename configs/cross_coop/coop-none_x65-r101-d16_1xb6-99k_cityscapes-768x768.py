# Without all paths: two separate networks that are trained together, and their ensemble.
_base_ = './cross-coop_x65-r101-d16_1xb6-99k_cityscapes-768x768.py'
model = dict(decode_head=dict(topology='none'), test_cfg=dict(output='ensemble'))
