# Without all paths: two separate networks that are trained together, and their ensemble.
_base_ = './cross-coop_mnv2-effl0-d16_1xb6-600_camvid-180x240.py'
model = dict(decode_head=dict(topology='none'))
