from __future__ import annotations

import pytest
import torch
from mmseg.registry import MODELS


@pytest.fixture
def dpa_model_cfg(coop_model_cfg):
    """Config of a tiny cooperative DPANet."""

    def make(**head):
        cfg = coop_model_cfg()
        cfg['decode_head'] = dict(
            type='CrossCoopDPAHead',
            networks=dict(top=dict(in_channels=64), bottom=dict(in_channels=80)),
            channels=16,
            num_classes=4,
            key_sizes=(1, 2),
            value_sizes=(1, 2),
            **head,
        )
        return cfg

    return make


@pytest.mark.parametrize('topology', ['none', 'one_way', 'cross'])
def test_every_parameter_gets_a_finite_gradient(dpa_model_cfg, train_batch, topology):
    model = MODELS.build(dpa_model_cfg(topology=topology)).train()
    data = model.data_preprocessor(train_batch(), training=True)
    loss, losses = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    for name in ('top', 'bottom'):
        assert {f'decode.{name}.{output}.loss_ce' for output in ('fused', 'spa', 'cpa')} <= set(
            losses
        )
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_without_paths_each_network_is_the_single_network_bit_for_bit(dpa_model_cfg):
    both = MODELS.build(dpa_model_cfg(topology='none')).eval()
    image = torch.rand(1, 3, 64, 64)
    pyramids = both.extract_feat(image)
    logits = both.decode_head(pyramids)
    for name, head in both.decode_head.networks.items():
        assert torch.equal(logits[name], head(pyramids[name]))


@pytest.mark.parametrize('site', ['input', 'attention_input', 'attention', 'attention_output'])
def test_every_site_is_a_real_connection(dpa_model_cfg, site):
    model = MODELS.build(dpa_model_cfg(connections=[site])).eval()
    none = MODELS.build(dpa_model_cfg(topology='none')).eval()
    none.load_state_dict(model.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        connected, separate = model(image), none(image)
    for name in ('top', 'bottom'):
        assert not torch.allclose(connected[name], separate[name])


def test_predictions_hold_every_output(dpa_model_cfg):
    model = MODELS.build(dpa_model_cfg()).eval()
    sample = model.predict(torch.rand(1, 3, 65, 50))[0]
    assert sample.output_names == ('top', 'bottom', 'ensemble')
    assert sample.pred_sem_seg.shape == (65, 50)


def test_without_convolutions_there_are_no_sites_behind_them(dpa_model_cfg):
    model = MODELS.build(dpa_model_cfg(convolutions='none')).eval()
    assert set(model.decode_head.cooperation.paths) == {'input', 'attention'}
    none = MODELS.build(dpa_model_cfg(convolutions='none', topology='none')).eval()
    none.load_state_dict(model.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        connected, separate = model(image), none(image)
    for name in ('top', 'bottom'):
        assert not torch.allclose(connected[name], separate[name])
    with pytest.raises(ValueError, match='attention_output'):
        MODELS.build(dpa_model_cfg(convolutions='none', connections=['attention_output']))
