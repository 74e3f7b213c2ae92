# Odd pool sizes for keys and values, without pretrained weights (table 4).
_base_ = './dpanet-scratch_r101-d8_1xb8-112k_cityscapes-768x768.py'
model = dict(decode_head=dict(key_sizes=(1, 5, 7, 9, 13)))
