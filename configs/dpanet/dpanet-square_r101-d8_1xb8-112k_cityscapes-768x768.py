# Channel attention by the squared distance, without pretrained weights (table 4).
_base_ = './dpanet-scratch_r101-d8_1xb8-112k_cityscapes-768x768.py'
model = dict(decode_head=dict(similarity='square'))
