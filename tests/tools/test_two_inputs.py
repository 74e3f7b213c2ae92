"""The tools take the channels of the images from the config, and a second image from its file."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmseg.registry import DATASETS

from mmseg_coop.datasets import SkipFaultyDataset

CONFIGS = Path(__file__).resolve().parents[2] / 'configs/cross_coop'
NAMES = dict(rgbd='nyuv2', rgbt='mfnet')
IMAGES = dict(rgbd='RGB', rgbt='images')
both = pytest.mark.parametrize('layout', NAMES)


@pytest.fixture(scope='module')
def work(tmp_path_factory, mini_data, untrained):
    """For each layout a config of small images, a checkpoint that makes sense of them, and data."""
    made = {}
    for layout, name in NAMES.items():
        folder = tmp_path_factory.mktemp(layout)
        data = folder / 'data'
        shutil.copytree(mini_data(layout, train=4, val=2), data)
        base = next(CONFIGS.glob(f'*-mini_*_{name}-*.py'))
        splits = ('train', 'val', 'test')
        text = ''.join(
            f'{split}_dataloader = dict(num_workers=0, persistent_workers=False, '
            f'dataset=dict(data_root={str(data)!r}))\n'
            for split in splits
        )
        config = folder / 'config.py'
        config.write_text(
            f'_base_ = {str(base)!r}\n{text}crop_size = (64, 64)\n'
            'model = dict(data_preprocessor=dict(size=crop_size))\n'
        )
        made[layout] = config, untrained(config, folder / 'model.pth'), data
    return made


@both
def test_costs_are_those_of_images_of_four_channels(work, run_tool, layout):
    config, _, _ = work[layout]
    assert '1 x 4 x 64 x 64' in run_tool('tools/analysis_tools/get_flops.py', config)
    words = ('--size', '64x64', '--repeats', 1, '--batch-size', 2, '--part', 'backbone')
    found = run_tool('tools/analysis_tools/benchmark.py', config, *words, '--optimize')
    assert found.startswith('2 x 4 x 64 x 64, median')


def labels_in(folder):
    files = sorted((folder / 'ensemble').iterdir())
    return {file.name: cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files}


@pytest.mark.parametrize(('layout', 'bgr_to_rgb'), [('rgbd', True), ('rgbt', False)])
def test_demo_and_exported_model_see_the_same_of_a_file(
    work, run_tool, layout, bgr_to_rgb, tmp_path
):
    pytest.importorskip('onnxruntime')
    config, checkpoint, data = work[layout]
    changed = ('--cfg-options', f'model.data_preprocessor.bgr_to_rgb={bgr_to_rgb}')
    images, out = data / IMAGES[layout], tmp_path / 'm.onnx'
    words = (images, config, checkpoint, '--labels', '--out', tmp_path / 'a', *changed)
    number = len(list(images.iterdir()))
    assert f'{number} of {number} images segmented' in run_tool('demo/image_demo.py', *words)
    run_tool('tools/deployment/export_onnx.py', config, checkpoint, '--out', out, *changed)
    run_tool('tools/deployment/onnx_inference.py', out, images, '--labels', '--out', tmp_path / 'b')
    here, there = labels_in(tmp_path / 'a'), labels_in(tmp_path / 'b')
    assert here.keys() == there.keys()
    assert len(np.unique(np.stack([*here.values()]))) > 1
    assert max((here[name] != there[name]).mean() for name in here) < 0.01
    # Without the second image they would see something else.
    name = next(iter(here))
    blind = tmp_path / 'blind' / IMAGES[layout]
    shutil.copytree(images, blind)
    source = blind / f'{name.removesuffix(".png")}{next(images.iterdir()).suffix}'
    if layout == 'rgbd':
        depth = tmp_path / 'blind/Depth' / name
        depth.parent.mkdir()
        cv2.imwrite(str(depth), np.zeros((64, 64), np.uint16))
    else:
        pixels = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)
        pixels[..., 3] = 0
        cv2.imwrite(str(source), pixels)
    run_tool('tools/deployment/onnx_inference.py', out, source, '--labels', '--out', tmp_path / 'c')
    assert (labels_in(tmp_path / 'c')[name] != there[name]).mean() > 0.02


@both
def test_the_second_image_is_drawn_beside_the_first(work, run_tool, layout, tmp_path):
    config, _, data = work[layout]
    words = ('--split', 'val', '--number', 1, '--out', tmp_path)
    run_tool('tools/analysis_tools/browse_dataset.py', config, *words)
    (figure,) = tmp_path.iterdir()
    drawn = cv2.imread(str(figure))
    side = 4 * 64  # panels of at least 240 pixels
    assert drawn.shape[1] == 3 * side + 2 * 4
    panel = drawn[22 : 22 + side : 4, side + 4 : 2 * side + 4 : 4]
    assert (panel == panel[..., :1]).all()
    names = [f'{name}.png' for name in figure.stem.split('_', 1)[1:]]
    file = data / ('Depth' if layout == 'rgbd' else 'images') / names[0]
    second = cv2.imread(str(file), cv2.IMREAD_UNCHANGED).reshape(64, 64, -1)[..., -1].astype(float)
    assert np.corrcoef(second.ravel(), panel[..., 0].ravel())[0, 1] > 0.99


def test_an_image_without_its_second_one_is_named(work, run_tool, tmp_path):
    config, checkpoint, data = work['rgbd']
    (tmp_path / 'RGB').mkdir()
    for file in sorted((data / 'RGB').iterdir())[:2]:
        shutil.copy(file, tmp_path / 'RGB')
        shutil.copy(file, tmp_path)
    depth = sorted((data / 'Depth').iterdir())[0]
    (tmp_path / 'Depth').mkdir()
    shutil.copy(depth, tmp_path / 'Depth')
    words = (config, checkpoint, '--out', tmp_path / 'out')
    error = run_tool('demo/image_demo.py', tmp_path / 'RGB', *words, code=1)
    assert 'error: second image of ' in error
    assert len([*(tmp_path / 'out').iterdir()]) == 1  # the other has its depth
    error = run_tool('demo/image_demo.py', str(tmp_path / '*.jpg'), *words, '--force', code=1)
    assert 'has no second image: it is not named RGB/….jpg' in error


@both
def test_a_video_has_no_second_image(work, run_tool, layout, tmp_path):
    config, checkpoint, _ = work[layout]
    writer = cv2.VideoWriter(
        str(tmp_path / 'in.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 12, (64, 64)
    )
    writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    words = (config, checkpoint, '--out', tmp_path / 'out.mp4')
    error = run_tool('demo/video_demo.py', tmp_path / 'in.avi', *words, code=1)
    expected = dict(rgbd='names no file', rgbt='mean and std of 4 channels')
    assert expected[layout] in error.splitlines()[-1]


def test_faulty_second_images_are_found_named_and_left_out(work, tool, tmp_path):
    config, _, data = work['rgbd']
    shutil.copytree(data, tmp_path / 'data')
    spoilt = sorted((tmp_path / 'data/Depth').glob('train*'))[1]
    spoilt.unlink()
    options = ('--cfg-options', f'train_dataloader.dataset.data_root={tmp_path / "data"}')
    words = ('--splits', 'train', '--out', tmp_path / 'histogram.png', *options)
    done = tool('tools/analysis_tools/check_dataset.py', config, *words)
    assert f'second image of {tmp_path}' in done.stdout
    cfg = Config.fromfile(config)
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = str(tmp_path / 'data')
    left = SkipFaultyDataset(dataset=dataset, test_mode=True)
    assert len(left) == len(DATASETS.build(dataset)) - 1
    (text,) = left.left_out.values()
    assert text.startswith('second image of ')
    assert str(spoilt) in text


def test_a_network_of_an_image_of_its_own_is_not_taken_out(work, run_tool, untrained, tmp_path):
    config, _, _ = work['rgbd']
    alone = {'model.decode_head.topology': 'none'}
    checkpoint = untrained(config, tmp_path / 'model.pth', alone)
    words = ('--network', 'top', '--out', tmp_path, '--cfg-options')
    words = (*words, *(f'{key}={value}' for key, value in alone.items()))
    error = run_tool('tools/model_converters/extract.py', config, checkpoint, *words, code=1)
    assert "network 'top' reads the channels (0, 1, 2) of an image" in error
