from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from mmseg_coop.config import load_config
from mmseg_coop.visualization.panels import label_maps
from tests.conftest import MINI

PAIR = """
_base_ = {base!r}
test_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(data_root={root!r}))
"""
PLAIN = (
    PAIR
    + """
model = dict(
    _delete_=True,
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(type='MobileNetV2', widen_factor=0.25, out_indices=(1, 6)),
    decode_head=dict(
        type='FCNHead', in_channels=80, in_index=1, channels=8, num_convs=1, num_classes=11,
        norm_cfg=dict(type='BN'),
    ),
    test_cfg=dict(mode='whole'),
)
"""
)


@pytest.fixture(scope='session')
def rows():
    """Takes the rows of all Markdown tables out of a text."""

    def take(text):
        return [
            [cell.strip() for cell in line[1:-1].split('|')]
            for line in text.splitlines()
            if line.startswith('|') and '---' not in line
        ]

    return take


@pytest.fixture(scope='session')
def evaluated(tmp_path_factory):
    """Four images of 64 x 64 pixels, and a pair and a plain model whose predictions vary.

    ``pair`` and ``plain`` are the words config and checkpoint; ``maps`` are the truth and what
    both predict, by name of the image and of the output; ``samples`` are the pair's predictions.
    """
    root = tmp_path_factory.mktemp('evaluated')
    rng = np.random.default_rng(0)
    for kind in ('img_dir', 'ann_dir'):
        (root / kind / 'val').mkdir(parents=True)
    for index in range(4):
        image = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (64, 64))
        Image.fromarray(image).save(root / f'img_dir/val/scene_{index}.jpg')
        label = rng.integers(0, 10, (64, 64)).astype(np.uint8)  # class 10 never occurs
        label[:4] = 255
        Image.fromarray(label).save(root / f'ann_dir/val/scene_{index}.png')
    init_default_scope('mmseg')
    found = SimpleNamespace(root=root, maps={}, samples=[])
    for kind, name, text in (
        ('pair', 'cross-coop_r18-mnv2_mini.py', PAIR),
        ('plain', 'fcn_mnv2_mini.py', PLAIN),
    ):
        config = root / name
        config.write_text(text.format(base=str(MINI), root=str(root)))
        cfg = load_config(str(config))
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).eval()
        for key, parameter in model.named_parameters():
            if 'conv_seg.weight' in key:
                torch.nn.init.normal_(parameter)
        torch.save(dict(state_dict=model.state_dict(), meta={}), config.with_suffix('.pth'))
        setattr(found, kind, (config, config.with_suffix('.pth')))
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        for item in dataset:
            with torch.no_grad():
                (sample,) = model.test_step(pseudo_collate([item]))
            found.maps.setdefault(Path(sample.img_path).stem, {}).update(label_maps(sample))
            found.samples += [sample.to_dict()] if kind == 'pair' else []
    found.meta = dataset.metainfo
    return found
