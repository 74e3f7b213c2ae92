# Without Connections 1 and 2.
_base_ = './cross-coop_x65-r101-d16_1xb6-99k_cityscapes-768x768.py'
model = dict(decode_head=dict(connections=['aspp', 'low_level', 'decoder']))
