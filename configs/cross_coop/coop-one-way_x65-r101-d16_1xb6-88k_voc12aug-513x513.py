# The conventional method: feature maps go from the top network to the bottom one only.
_base_ = './cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
model = dict(
    # one_way, spelt so that it survives mmengine's sorting of the networks in the configs it writes
    decode_head=dict(topology=dict(_delete_=True, bottom=['top'])),
    test_cfg=dict(output='bottom'),
)
