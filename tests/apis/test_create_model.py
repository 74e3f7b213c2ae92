"""Models by names: those of configs, of the papers' networks and of timm's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmseg.apis import inference_model
from mmseg.registry import MODELS

from mmseg_coop import create_model, list_models
from mmseg_coop.apis import load_model
from mmseg_coop.config import load_config
from mmseg_coop.errors import CheckpointError, ConfigError
from tests.conftest import BACKBONES, MINI, ROOT
from tests.test_docs import blocks

X = torch.rand(2, 3, 64, 64)


def test_the_training_loop_of_the_page_learns(mini_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/mini_camvid').symlink_to(mini_data())
    (block,) = [b for b in blocks(ROOT / 'docs/python.md', 'python') if 'backward()' in b]
    assert len([line for line in block.splitlines() if line]) <= 20
    exec(block, {})
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.9 * losses[0]


def test_models_are_listed_by_patterns():
    files = {path.stem for path in ROOT.glob('configs/[!_]*/*.py')}
    assert list_models() == sorted(files)
    few = {name.partition('_')[0] for name in list_models(['*mini*', 'dpanet_r50*'])}
    assert few == {'cross-coop', 'dpanet'}
    assert list_models('mini') == []


@pytest.mark.parametrize(
    ('name', 'outputs'),
    [
        (MINI.stem, ['top', 'bottom', 'ensemble']),
        ('deeplabv3plus_mnv2-d16_1xb6-600_camvid-180x240', ['mnv2']),
        ('dpanet_mnv2-d8_1xb8-3k_camvid-360x480', ['prediction']),
    ],
)
def test_a_config_gives_its_model_with_other_classes(name, outputs):
    model = create_model(name, num_classes=5)
    logits = model.eval()(X)
    assert {key: tuple(each.shape) for key, each in logits.items()} == dict.fromkeys(
        outputs, (2, 5, 64, 64)
    )
    assert list(model.predict(np.zeros((40, 64, 3), np.uint8))) == outputs
    assert create_model(name).segmentor.num_classes == 11
    assert model.loss(X, torch.zeros(2, 64, 64, dtype=torch.long)).isfinite()


def test_topology_and_head_change_the_model():
    networks = dict(top=BACKBONES['resnet'], bottom=BACKBONES['mobilenet'])
    cross, none = (
        create_model(**networks, num_classes=3, topology=topology, head=dict(channels=8))
        for topology in ('cross', 'none')
    )
    count = [sum(p.numel() for p in model.parameters()) for model in (cross, none)]
    assert count[0] > count[1]  # by the paths
    assert cross.segmentor.decode_head.networks['top'].channels == 8
    assert create_model(MINI.stem, topology='none').config['decode_head']['topology'] == 'none'


def test_a_checkpoint_of_mmseg_s_training_gives_the_same_predictions(untrained_mini, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    sample = inference_model(load_model(load_config(str(MINI)), str(untrained_mini)), image)
    maps = create_model(MINI.stem, checkpoint=str(untrained_mini)).predict(image)
    for name in sample.output_names:
        assert np.array_equal(maps[name], sample.pred_outputs.get(name)[0].numpy())
    assert len(np.unique(maps['ensemble'])) > 1


def test_a_checkpoint_of_other_classes_gives_all_but_its_classifiers(untrained_mini, capsys):
    model = create_model(MINI.stem, num_classes=3, checkpoint=str(untrained_mini))
    saved = torch.load(untrained_mini, weights_only=True)['state_dict']
    found = model.segmentor.state_dict()
    assert {*found} == {*saved}
    new = {name for name, value in found.items() if not torch.equal(value, saved[name])}
    networks = [f'decode_head.networks.{name}.conv_seg' for name in ('top', 'bottom')]
    assert new == {f'{name}.{kind}' for name in networks for kind in ('weight', 'bias')}
    for name in networks:  # initialised as mmseg does, small
        assert 0 < found[f'{name}.weight'].std() < 0.02
        assert not found[f'{name}.bias'].any()
    said = capsys.readouterr()
    assert f'new classifiers have to be trained: {networks[0]}.weight' in said.out + said.err
    assert model.loss(X, torch.full((2, 64, 64), 2)).isfinite()


def test_a_checkpoint_of_another_model_is_refused(untrained_mini):
    for changed in (dict(num_classes=3, head=dict(channels=16)), dict(head=dict(num_classes=3))):
        with pytest.raises(CheckpointError, match='does not fit the config'):
            create_model(MINI.stem, checkpoint=str(untrained_mini), **changed)


@pytest.mark.parametrize(
    ('network', 'strides', 'mean'),
    [
        ('mobilenet_v2', (4, 16), 127.5),
        ('resnet101', (4, 16), None),
        ('xception65', (4, 16), 127.5),
        ('timm/tf_efficientnet_lite0', (4, 16), 127.5),
        ('timm/resnet10t', (4, 16), None),
        ('timm/ghostnet_050', (4, 32), None),  # refuses another stride
        ('timm/pvt_v2_b0', (4, 32), None),  # knows of none
    ],
)
def test_networks_give_a_low_level_and_a_deep_one(network, strides, mean):
    model = create_model(net=network, num_classes=3)
    backbone = model.segmentor.backbone.eval()
    with torch.no_grad():
        levels = backbone(X)['net']
    assert tuple(64 // level.shape[-1] for level in levels) == strides
    own = model.config['backbone']['normalize']
    assert own == ({} if mean is None else dict(net=dict(mean=[mean] * 3, std=[mean] * 3)))


def test_pretrained_weights_are_asked_for_and_not_kept_in_the_config(tmp_path, monkeypatch):
    asked = []
    create = timm.create_model

    def without_network(*args, pretrained=False, **kwargs):
        asked.append(pretrained)
        return create(*args, **kwargs)

    monkeypatch.setattr(timm, 'create_model', without_network)
    monkeypatch.chdir(tmp_path)
    networks = dict(top='mobilenet_v2', bottom='timm/resnet10t')
    model = create_model(**networks, num_classes=3)
    assert not any(asked)
    weights = {
        name: torch.full_like(value, 0.5)
        for name, value in model.segmentor.backbone.networks['top'].state_dict().items()
    }
    Path('pretrained').mkdir()
    torch.save(weights, 'pretrained/mobilenet_v2.pth')
    model = create_model(**networks, num_classes=3, pretrained=True)
    assert any(asked)
    assert all((p == 0.5).all() for p in model.segmentor.backbone.networks['top'].parameters())
    backbones = model.config['backbone']['networks']
    assert (backbones['top']['init_cfg'], backbones['bottom']['pretrained']) == (None, False)
    assert MODELS.build(model.config)


MANY = 'cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513'


@pytest.mark.parametrize(
    ('words', 'arguments', 'error', 'message'),
    [
        ([MANY[:-1]], {}, FileNotFoundError, rf"config '{MANY[:-1]}' does not.* mean {MANY}.py"),
        (['cross-coop_x65'], {}, FileNotFoundError, rf'Did you mean {MANY}.py'),
        ([], dict(top='mobilenetv2'), ConfigError, "top='mobilenetv2'.* Did you mean mobilenet_v2"),
        ([], dict(top='timm/resnet1'), ConfigError, 'Did you mean timm/resnet18'),
        ([], dict(top='resnet18'), ConfigError, 'Did you mean .*timm/resnet18'),
        ([], dict(top='resnet101', num_class=3), ConfigError, 'Did you mean num_classes'),
        ([], dict(top=BACKBONES['resnet'], num_classes=None), ConfigError, 'has no num_classes'),
        ([], dict(top=BACKBONES['resnet'], num_classes=1), ConfigError, 'nothing to tell apart'),
        ([], dict(top=dict(type='ResNet', depth=17)), ConfigError, r'networks.top.depth=17'),
        ([], dict(top=BACKBONES['resnet'], head=dict(channel=8)), ConfigError, 'mean channels'),
        ([], dict(top=BACKBONES['resnet'], topology='crss'), ConfigError, "topology='crss'"),
        ([], dict(top=dict(type=torch.nn.Conv2d)), ConfigError, 'has to be data'),
        ([MINI.stem], dict(top='resnet101'), ConfigError, 'either the name'),
        ([MINI.stem], dict(num_clases=3), ConfigError, 'Did you mean num_classes'),
        (['resnet50'], {}, FileNotFoundError, "not exist.* as in net='timm/resnet50'"),
        ([], {}, ConfigError, 'got None and no network'),
    ],
)
def test_wrong_names_and_arguments_are_said_with_proposals(words, arguments, error, message):
    with pytest.raises(error, match=message):
        create_model(*words, **{'num_classes': 3, **arguments})
