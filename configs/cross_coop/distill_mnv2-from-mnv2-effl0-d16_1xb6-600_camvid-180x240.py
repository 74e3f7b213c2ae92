# The pair teaches a third network, a MobileNetV2 that receives no maps and can be taken out.
_base_ = './cross-coop_mnv2-effl0-d16_1xb6-600_camvid-180x240.py'
model = dict(
    backbone=dict(networks=dict(light={{_base_.model.backbone.networks.top}})),
    decode_head=dict(
        networks=dict(light={{_base_.model.decode_head.networks.top}}),
        topology=dict(_delete_=True, top=['bottom'], bottom=['top']),
        transfer=[dict(teacher='ensemble', student='light')],
    ),
    test_cfg=dict(output='light'),
)
