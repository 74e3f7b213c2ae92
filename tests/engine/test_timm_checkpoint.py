from __future__ import annotations

import pytest
import timm
import torch
from mmengine.runner import CheckpointLoader

from mmseg_coop.models.backbones.xception import Xception, convert_timm_state_dict


@pytest.fixture
def downloads(monkeypatch):
    """Replace the download by random weights; lists the models made, by name."""
    create_model, models = timm.create_model, {}

    def create_offline(name, pretrained=False, **kwargs):
        assert pretrained
        models[name] = create_model(name, pretrained=False, **kwargs)
        return models[name]

    monkeypatch.setattr(timm, 'create_model', create_offline)
    return models


@pytest.mark.parametrize('map_location', [None, 'cpu', torch.device('cpu')])
def test_xception_is_converted(downloads, map_location):
    name = 'xception41.tf_in1k'
    loaded = CheckpointLoader.load_checkpoint(f'timm://{name}', map_location=map_location)
    expected = convert_timm_state_dict(downloads[name].state_dict())
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_pretrained_backbone(downloads):
    name = 'xception41.tf_in1k'
    model = Xception(depth=41, init_cfg=dict(type='Pretrained', checkpoint=f'timm://{name}'))
    model.init_weights()
    expected = convert_timm_state_dict(downloads[name].state_dict())
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('name', ['resnet18', 'xception41p.ra3_in1k'])
def test_other_models_keep_timms_names(downloads, name):
    loaded = CheckpointLoader.load_checkpoint(f'timm://{name}')
    expected = downloads[name].state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_map_location(downloads):
    loaded = CheckpointLoader.load_checkpoint('timm://resnet18', map_location='meta')
    assert {value.device.type for value in loaded.values()} == {'meta'}


@pytest.mark.parametrize(
    ('name', 'suggestion'),
    [
        ('xception65.imagenet', 'xception65.tf_in1k'),  # wrong tag
        ('xceptoin65.tf_in1k', 'xception65.tf_in1k'),  # misspelt
        ('efficientnet_lite1', 'efficientnet_lite'),  # a model, but without weights
        ('', 'timm.list_pretrained()'),
    ],
)
def test_unknown_name(downloads, name, suggestion):
    with pytest.raises(ValueError, match='has no pretrained weights called') as error:
        CheckpointLoader.load_checkpoint(f'timm://{name}')
    assert repr(name) in str(error.value)
    assert suggestion in str(error.value)
    assert not downloads
