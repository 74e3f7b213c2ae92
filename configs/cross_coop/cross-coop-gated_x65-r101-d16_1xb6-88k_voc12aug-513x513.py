# Received maps are weighed per pixel and channel before they are summed.
_base_ = './cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
model = dict(decode_head=dict(fusion=dict(type='GatedFusion')))
