# Without Connection 2, the exchange of the ASPP outputs.
_base_ = './cross-coop_x65-r101-d16_1xb6-99k_cityscapes-768x768.py'
model = dict(decode_head=dict(connections=['input', 'aspp', 'low_level', 'decoder']))
