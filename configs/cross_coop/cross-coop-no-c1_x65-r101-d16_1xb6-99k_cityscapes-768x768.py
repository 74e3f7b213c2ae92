# Without Connection 1, the exchange of the backbones' outputs.
_base_ = './cross-coop_x65-r101-d16_1xb6-99k_cityscapes-768x768.py'
model = dict(decode_head=dict(connections=['aspp', 'aspp_output', 'low_level', 'decoder']))
