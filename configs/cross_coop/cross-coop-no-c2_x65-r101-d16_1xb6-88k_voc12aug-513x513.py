# Without Connection 2, the exchange of the ASPP outputs.
_base_ = './cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
model = dict(decode_head=dict(connections=['input', 'aspp', 'low_level', 'decoder']))
