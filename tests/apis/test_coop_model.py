"""A model as a module of PyTorch: what goes in and out, and what a folder brings back."""

from __future__ import annotations

import json
import sys

import cv2
import huggingface_hub.hub_mixin
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from mmseg_coop import CoopModel, create_model
from mmseg_coop.engine.safe_checkpoint import TRUST_VARIABLE
from mmseg_coop.errors import CheckpointError, ConfigError, DataError, InputError
from tests.conftest import BACKBONES

HEAD = dict(channels=16, dilations=(1, 2, 3, 4), dropout_ratio=0)
TINY = dict(num_classes=4, head=HEAD)


@pytest.fixture
def pair():
    """A tiny pair whose networks are normalised differently, its classes spread by pixel."""
    model = create_model(top=BACKBONES['resnet'], bottom='timm/mobilenetv3_small_050', **TINY)
    for name, parameter in model.named_parameters():
        if 'conv_seg' in name:
            torch.nn.init.normal_(parameter, std=2)
    return model


def scenes(*sizes):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


# In and out


def test_forward_gives_every_output_as_large_as_the_image(pair):
    x = torch.randint(0, 256, (2, 3, 50, 65), dtype=torch.uint8)
    logits = pair.eval()(x)
    assert {name: tuple(each.shape) for name, each in logits.items()} == dict.fromkeys(
        ('top', 'bottom', 'ensemble'), (2, 4, 50, 65)
    )
    assert torch.equal(logits['ensemble'], logits['top'] + logits['bottom'])
    torch.testing.assert_close(pair(x / 255), logits)  # the two kinds of images


def test_a_model_takes_images_to_its_device(pair):
    x = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    assert {logits.device.type for logits in pair.to('meta')(x).values()} == {'meta'}


def test_the_loss_is_that_of_the_logits_and_reaches_every_weight(pair):
    x, y = torch.rand(2, 3, 48, 64), torch.randint(0, 4, (2, 48, 64))
    y[:, :9] = 255
    logits = pair(x)
    expected = sum(cross_entropy(logits[name], y, ignore_index=255) for name in ('top', 'bottom'))
    loss = pair.loss(x, y)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in pair.parameters())
    assert torch.equal(pair.loss(x, y.byte()), loss)


def test_predict_takes_what_forward_does_in_other_clothes(pair, tmp_path):
    (image,) = scenes((48, 64))
    rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None]
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    pair.train().segmentor.backbone.eval()  # as in training with frozen statistics
    found = pair.predict([image, Image.fromarray(image[..., ::-1]), tmp_path / 'image.png'])
    assert pair.segmentor.decode_head.training
    assert not pair.segmentor.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    expected = {name: each.argmax(1)[0].numpy() for name, each in pair.eval()(rgb).items()}
    for maps in found:
        assert list(maps) == ['top', 'bottom', 'ensemble']
        assert all(np.array_equal(maps[name], expected[name]) for name in maps)
    assert len(np.unique(expected['ensemble'])) > 1


def test_channels_behind_the_colours_keep_their_units():
    """Colours of 0 to 1 or 255, and millimetres."""
    model = create_model('cross-coop_r18-mnv2-d16-mini_1xb8-200_nyuv2-128x128').eval()
    colours, depth = torch.randint(0, 256, (1, 3, 64, 64)), torch.randint(500, 9999, (1, 1, 64, 64))
    x = torch.cat([colours / 255, depth], dim=1)
    seen = []
    model.segmentor.backbone.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    logits = model(x)
    mean, std = (
        torch.tensor(model.config['data_preprocessor'][key]).view(-1, 1, 1)
        for key in ('mean', 'std')
    )
    torch.testing.assert_close(seen[0], (torch.cat([colours, depth], 1) - mean) / std)
    array = torch.cat([colours.flip(1), depth], dim=1)[0].permute(1, 2, 0).numpy()
    maps = model.predict(array.astype(np.uint16))
    torch.testing.assert_close(seen[1], seen[0])
    assert {name: each.shape for name, each in maps.items()} == dict.fromkeys(logits, (64, 64))
    for image in ('a.png', array[..., :3]):
        with pytest.raises(InputError, match=r'the model takes an array \(H, W, 4\)'):
            model.predict(image)


def test_a_list_of_images_of_several_sizes_is_predicted_one_by_one(pair):
    images = scenes((40, 64), (64, 64), (33, 47))
    for image, maps in zip(images, pair.predict(images), strict=True):
        alone = pair.predict(image)
        assert {each.shape for each in maps.values()} == {image.shape[:2]}
        assert all(np.array_equal(maps[name], alone[name]) for name in alone)


def test_a_config_says_how_an_image_is_normalised_and_predicted():
    """The channels of BGR models are turned; sliding windows are those of test_cfg."""
    model = create_model(net=BACKBONES['mobilenet'], **TINY)
    kinds = {}
    for key in (True, False):
        test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(32, 32))
        config = {**model.config, 'test_cfg': test_cfg}
        config['data_preprocessor'] = {**config['data_preprocessor'], 'bgr_to_rgb': key}
        kinds[key] = CoopModel(config=config).eval()
    kinds[False].load_state_dict(kinds[True].state_dict())
    (image,) = scenes((32, 64))
    x = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None]
    preprocessor = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in preprocessor.values())
    for rgb, each in kinds.items():
        expected = ((x if rgb else x.flip(1)) - mean) / std
        torch.testing.assert_close(each._preprocess(x), expected)
        maps = each.predict(image)['net']
        halves = [each.predict(half)['net'] for half in np.split(image, 2, axis=1)]
        assert np.array_equal(maps, np.concatenate(halves, axis=1))


X, Y = torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long)


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda m: m(X * 255), InputError, 'floating point images of 0 to 1'),
        (lambda m: m((X - 0.45) / 0.225), InputError, 'the model normalises them'),
        (lambda m: m(X * float('nan')), InputError, 'x lies in nan'),
        (lambda m: m(X.long()), InputError, 'x is torch.int64'),
        (lambda m: m(X[0]), InputError, r'shape \(3, 32, 32\); give RGB images \(N, 3, H, W\)'),
        (lambda m: m(X[:, :2]), InputError, r'shape \(2, 2, 32, 32\)'),
        (lambda m: m.loss(X, Y.float()), InputError, 'labels of x as integers'),
        (lambda m: m.loss(X, Y[:, :16]), InputError, r'of shape \(2, 32, 32\)'),
        (lambda m: m.loss(X, Y + 4), InputError, 'label 4; the classes are 0 to 3, and 255'),
        (lambda m: m.predict(X[0]), InputError, 'For tensors there is forward'),
        (lambda m: m.predict(X[0, 0].numpy()), InputError, 'give a path, a PIL.Image'),
        (lambda m: m.predict(np.zeros((9, 9, 4), np.uint8)), InputError, r'ndarray \(9, 9, 4\);'),
        (lambda m: m.predict('no/such.png'), FileNotFoundError, 'no/such.png'),
        (lambda m: m.predict(__file__), DataError, 'is no image'),
    ],
)
def test_what_is_no_image_or_label_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(create_model(net=BACKBONES['mobilenet'], **TINY))


# Folders


@pytest.fixture
def saved(pair, tmp_path, monkeypatch):
    """The folder of a pair, and no way to the hub."""

    def refuse(*args, **kwargs):
        raise AssertionError('asks the hub')

    monkeypatch.setattr(huggingface_hub.hub_mixin, 'hf_hub_download', refuse)
    pair.save_pretrained(tmp_path / 'pair')
    return tmp_path / 'pair'


def test_a_folder_brings_the_same_model_back(pair, saved):
    assert {file.name for file in saved.iterdir()} == {
        *('README.md', 'config.json', 'model.safetensors')
    }
    loaded = CoopModel.from_pretrained(saved)
    assert not loaded.training
    assert loaded.config == pair.config
    assert list(loaded.config['backbone']['networks']) == ['top', 'bottom']  # order has a meaning
    found, expected = loaded(X), pair.eval()(X)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_networks_that_share_their_weights_come_back(tmp_path):
    config = create_model(a=BACKBONES['resnet'], b=BACKBONES['resnet'], **TINY).config
    model = CoopModel(config={**config, 'backbone': {**config['backbone'], 'shared': True}})
    model.save_pretrained(tmp_path / 'shared')
    loaded = CoopModel.from_pretrained(tmp_path / 'shared')
    assert loaded.segmentor.backbone.networks['a'] is loaded.segmentor.backbone.networks['b']
    assert torch.equal(loaded(X)['ensemble'], model.eval()(X)['ensemble'])


def change(saved, **changes):
    config = json.loads((saved / 'config.json').read_text())
    backbone = config['backbone']['networks']['bottom']
    (config if 'custom_imports' in changes else backbone).update(changes)
    (saved / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize(
    'changes',
    [
        dict(type='intruder.run'),
        dict(type='intruder'),
        dict(_scope_='intruder'),
        dict(norm_layer='intruder.run'),
        dict(custom_imports=dict(imports=['intruder'])),
    ],
    ids=str,
)
def test_a_folder_runs_no_code(saved, changes, monkeypatch):
    (saved / 'intruder.py').write_text('def run(*args, **kwargs): pass')
    monkeypatch.syspath_prepend(str(saved))
    change(saved, **changes)
    with pytest.raises((CheckpointError, ConfigError), match=r'intruder|custom_imports'):
        CoopModel.from_pretrained(saved)
    assert 'intruder' not in sys.modules


def test_a_folder_that_one_trusts_may_name_any_class(saved, monkeypatch):
    change(saved, type='mmseg.models.backbones.TIMMBackbone')
    with pytest.raises(CheckpointError, match=f'not registered: refused.*{TRUST_VARIABLE}=1'):
        CoopModel.from_pretrained(saved)
    monkeypatch.setenv(TRUST_VARIABLE, '1')
    assert set(CoopModel.from_pretrained(saved)(X)) == {'top', 'bottom', 'ensemble'}


def test_a_folder_has_all_weights_and_no_others_are_fetched(saved):
    change(saved, pretrained=True, checkpoint_path='weights.pth')
    config = CoopModel.from_pretrained(saved).config['backbone']['networks']['bottom']
    assert (config['pretrained'], config['checkpoint_path']) == (False, '')


def test_what_is_wrong_with_a_folder_is_said(saved):
    with pytest.raises(FileNotFoundError, match='Did you mean pair'):
        CoopModel.from_pretrained(saved.with_name('piar'))
    for name, text in (('config.json', '{"type": '), ('model.safetensors', 'no weights')):
        content = (saved / name).read_bytes()
        (saved / name).write_text(text)
        with pytest.raises(CheckpointError, match=f'{name} is damaged'):
            CoopModel.from_pretrained(saved)
        (saved / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            CoopModel.from_pretrained(saved)
        (saved / name).write_bytes(content)
    change(saved, model_name='resnet18')
    with pytest.raises(CheckpointError, match='does not fit the config'):
        CoopModel.from_pretrained(saved)
