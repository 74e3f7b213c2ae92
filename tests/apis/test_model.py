from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model
from mmseg.registry import MODELS

from mmseg_coop.apis.model import load_model
from mmseg_coop.datasets import CamVidDataset
from tests.conftest import MINI


@pytest.fixture
def cfg():
    return Config.fromfile(MINI)


@pytest.fixture(scope='module')
def weights():
    init_default_scope('mmseg')  # fixtures of a module come before those of a test
    torch.manual_seed(1)
    return MODELS.build(Config.fromfile(MINI).model).state_dict()


@pytest.fixture
def save(tmp_path):
    def save(content):
        torch.save(content, tmp_path / 'model.pth')
        return str(tmp_path / 'model.pth')

    return save


@pytest.mark.parametrize('wrapped', [False, True], ids=['plain', 'state_dict'])
def test_weights_without_meta_take_the_classes_of_the_config(cfg, weights, save, wrapped):
    model = load_model(cfg, save(dict(state_dict=weights) if wrapped else weights))
    assert not model.training
    assert model.dataset_meta == dict(CamVidDataset.METAINFO)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_classes_of_the_checkpoint_come_first(cfg, weights, save):
    meta = dict(dataset_meta=dict(classes=('road', 'rest'), palette=[[1, 2, 3], [4, 5, 6]]))
    model = load_model(cfg, save(dict(state_dict=weights, meta=meta)))
    assert model.dataset_meta == meta['dataset_meta']


def test_classes_of_wrapped_data_sets_that_lack_files(cfg, weights, save):
    voc = dict(type='PascalVOCDataset', ann_file='gone.txt', data_root='gone')
    dataset = dict(type='ConcatDataset', datasets=[voc], pipeline=cfg.test_pipeline)
    cfg.test_dataloader = dict(dataset=dataset)
    classes = load_model(cfg, save(weights)).dataset_meta['classes']
    assert classes[:2] == ('background', 'aeroplane')


def test_classes_of_the_config_without_colours(cfg, weights, save):
    classes = tuple(f'kind {index}' for index in range(11))
    cfg.test_dataloader.dataset.metainfo = dict(classes=classes)
    first, second = (load_model(cfg, save(weights)).dataset_meta for _ in range(2))
    assert first == second
    assert first['classes'] == classes
    assert len({tuple(color) for color in first['palette']}) == 11


def test_nothing_names_the_classes(cfg, weights, save):
    cfg.test_dataloader.dataset = dict(type='BaseSegDataset', pipeline=[])
    with pytest.raises(ValueError, match='neither the checkpoint nor the config names the classes'):
        load_model(cfg, save(weights))


def test_images_are_segmented_whole(cfg, weights, save):
    crop = dict(type='EvalCenterCrop', crop_size=(32, 32))
    cfg.test_dataloader.dataset.pipeline.insert(1, crop)
    model = load_model(cfg, save(weights))
    image = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8).numpy()
    assert inference_model(model, image).pred_outputs.shape == (50, 70)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: w.pop('decode_head.networks.top.conv_seg.bias'), 'it lacks decode_head'),
        (lambda w: w.update(extra=torch.zeros(1)), 'it holds the unknown extra'),
        (
            lambda w: w.update({next(iter(w)): torch.zeros(1)}),
            'does not fit the config: size mismatch',
        ),
    ],
    ids=['missing', 'unexpected', 'shape'],
)
def test_weights_that_do_not_fit(cfg, weights, save, change, message):
    changed = dict(weights)
    change(changed)
    with pytest.raises(ValueError, match=message):
        load_model(cfg, save(changed))
