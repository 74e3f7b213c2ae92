# The conventional method: feature maps go from the top network to the bottom one only.
_base_ = './cross-coop_x65-r101-d16_1xb6-99k_cityscapes-768x768.py'
model = dict(decode_head=dict(topology='one_way'), test_cfg=dict(output='bottom'))
