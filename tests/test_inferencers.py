"""mmseg's own interfaces for inference, with this project's configs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmseg.apis import MMSegInferencer, inference_model, init_model
from mmseg.registry import MODELS

from mmseg_coop.datasets import CamVidDataset
from mmseg_coop.datasets.faults.walk import iter_datasets
from tests.conftest import MINI, ROOT, write_mini_with

NAME = MINI.stem
NAMES = ['bottom', 'ensemble', 'top']


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """Two images."""
    folder = tmp_path_factory.mktemp('inferencers')
    generator = np.random.default_rng(0)
    for name in ('a.png', 'b.png'):
        image = cv2.resize(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8), (80, 60))
        cv2.imwrite(str(folder / name), image)
    return folder


@pytest.fixture
def checkpoint(untrained_mini):
    return str(untrained_mini)


@pytest.fixture
def image(work):
    return str(work / 'a.png')


@torch.no_grad()
def label_maps(checkpoint, image):
    """Label maps straight from the logits."""
    cfg = Config.fromfile(MINI)
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    rgb = torch.from_numpy(cv2.imread(image)[..., ::-1].copy()).permute(2, 0, 1)[None]
    logits = {
        name: torch.nn.functional.interpolate(low, size=(60, 80), mode='bilinear')
        for name, low in model((rgb - 127.5) / 64, mode='tensor').items()
    }
    logits['ensemble'] = logits['top'] + logits['bottom']
    return {name: value[0].argmax(0) for name, value in logits.items()}


def check(sample, expected):
    assert sorted(sample.pred_outputs.keys()) == NAMES
    for name in NAMES:
        found = sample.pred_outputs.get(name)
        assert found.shape == (1, 60, 80)
        assert (found[0] == expected[name]).float().mean() > 0.999
    assert len(expected['top'].unique()) > 1
    assert torch.equal(sample.pred_sem_seg.data, sample.pred_outputs.ensemble)


def test_inference_model_returns_every_output(checkpoint, image):
    expected = label_maps(checkpoint, image)
    model = init_model(str(MINI), checkpoint, device='cpu')
    assert model.dataset_meta['classes'] == CamVidDataset.METAINFO['classes']
    check(inference_model(model, image), expected)
    for sample in inference_model(model, [image, image]):
        check(sample, expected)
    check(inference_model(model, cv2.imread(image)), expected)


#: Ways to name the model to MMSegInferencer.
WAYS = {
    'path': lambda: dict(model=str(MINI)),
    'path in our scope': lambda: dict(model=str(MINI), scope='mmseg_coop'),
    'name of the config': lambda: dict(model=get_config(f'mmseg_coop::cross_coop/{NAME}.py')),
    'checkpoint': lambda: dict(model=None),
    'name of the model': lambda: dict(model=NAME, scope='mmseg_coop'),
}


@pytest.mark.parametrize('way', WAYS)
def test_inferencer_returns_every_output(way, checkpoint, image):
    if way == 'name of the config' and not (ROOT / 'mmseg_coop/.mim').is_dir():
        pytest.skip('the checkout is not installed (pip install -e .): its configs have no name')
    expected = label_maps(checkpoint, image)
    inferencer = MMSegInferencer(**WAYS[way](), weights=checkpoint, device='cpu')
    assert tuple(inferencer.model.dataset_meta['classes']) == CamVidDataset.METAINFO['classes']
    check(inferencer(image, return_datasamples=True), expected)
    result = inferencer(cv2.imread(image), return_vis=True)
    assert (result['predictions'] == expected['ensemble'].numpy()).mean() > 0.999
    # the input and three outputs, enlarged four times, above a legend
    assert result['visualization'].shape[1] == 4 * 4 * 80 + 3 * 4


def test_inferencer_writes_images_and_label_maps(checkpoint, image, work, tmp_path):
    inferencer = MMSegInferencer(**WAYS['path'](), weights=checkpoint, device='cpu')
    result = inferencer(str(work), batch_size=2, out_dir=str(tmp_path))
    assert len(result['predictions']) == 2
    assert sorted(f.name for f in (tmp_path / 'vis').iterdir()) == ['a.png', 'b.png']
    label = cv2.imread(str(tmp_path / 'pred/00000000_pred.png'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(label, result['predictions'][0])


def test_all_models_are_listed():
    names = MMSegInferencer.list_models('mmseg_coop')
    present = [path.stem for path in ROOT.glob('configs/[!_]*/*.py')]
    assert sorted(names) == sorted(present)


@pytest.fixture
def cropped(tmp_path):
    """A config that evaluates the centre crop, as those of VOC do."""
    resize = dict(type='Resize', scale=(256, 64), keep_ratio=True)
    crop = dict(type='EvalCenterCrop', crop_size=(64, 64))
    return Config.fromfile(write_mini_with(tmp_path / 'cropped.py', resize, crop))


def test_images_of_several_sizes_are_segmented_whole_at_once(cropped, checkpoint, image):
    images = [cv2.imread(image), cv2.imread(image)[:50, :66], cv2.imread(image)[10:, 20:]]
    inferencer = MMSegInferencer(model=cropped.copy(), weights=checkpoint, device='cpu')
    model = init_model(cropped, checkpoint, device='cpu')
    alone = [inference_model(model, one) for one in images]
    together = inferencer(images, batch_size=2, return_datasamples=True)
    for found in (together, inference_model(model, images)):
        assert [sample.pred_outputs.shape for sample in found] == [(60, 80), (50, 66), (50, 60)]
        for sample, other in zip(found, alone, strict=True):
            for name in NAMES:
                equal = sample.pred_outputs.get(name) == other.pred_outputs.get(name)
                assert equal.float().mean() > 0.999


def test_every_test_pipeline_suits_the_inferencers():
    for path in ROOT.glob('configs/[!_]*/*.py'):
        cfg = Config.fromfile(path)
        types = [transform['type'] for transform in cfg.test_pipeline]
        assert types[0] == 'LoadImageFromFile', path.name  # where inference_model swaps it
        assert types.count('LoadAnnotations') == 1, path.name
        assert 'LoadSegAnnotations' not in types, path.name
        assert cfg.test_dataloader.dataset.pipeline == cfg.test_pipeline, path.name
        for split in ('train', 'val'):  # which nobody else reads, so that mmseg's tools check, too
            dataset = next(iter_datasets(cfg[f'{split}_dataloader'].dataset))
            types = {transform['type'] for transform in dataset.pipeline}
            assert types > {'LoadSegImage', 'LoadSegAnnotations'}, path.name
