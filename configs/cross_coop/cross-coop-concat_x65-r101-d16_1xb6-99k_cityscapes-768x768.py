# Received maps are concatenated and reduced instead of summed.
_base_ = './cross-coop_x65-r101-d16_1xb6-99k_cityscapes-768x768.py'
model = dict(decode_head=dict(fusion=dict(type='ConcatFusion')))
