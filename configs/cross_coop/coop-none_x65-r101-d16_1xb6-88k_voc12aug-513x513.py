# Without all paths: two separate networks that are trained together, and their ensemble.
_base_ = './cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
model = dict(decode_head=dict(topology='none'), test_cfg=dict(output='ensemble'))
