"""A pair learns what neither of its networks can, where each sees another image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_nyuv2-128x128.py'
SMALL = f"""
_base_ = {str(MINI)!r}
train_pipeline = [
    dict(type='LoadSegImage'),
    dict(type='LoadSegAnnotations', num_classes=6),
    dict(type='LoadSecondImage', folder=('RGB', 'Depth'), dtype='uint16'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
short = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(**short, dataset=dict(data_root=DATA, pipeline=train_pipeline))
val_dataloader = dict(**short, dataset=dict(data_root=DATA))
model = dict(data_preprocessor=dict(size=(64, 64)))
train_cfg = dict(max_iters=150, val_interval=150)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=150, by_epoch=False)]
randomness = dict(seed=0)
"""


@pytest.mark.slow
def test_a_pair_learns_what_only_one_of_its_images_shows(tool, mini_data, tmp_path):
    """Boxes show in the depth only, which is the bottom network's, pictures in colour only."""
    data = mini_data('rgbd', train=64, val=16)
    found = {}
    for topology in ('none', 'cross'):
        config = tmp_path / f'{topology}.py'
        model = f"model['decode_head'] = dict(topology={topology!r})\n"
        config.write_text(SMALL.replace('DATA', repr(str(data))) + model)
        done = tool('tools/train.py', config, '--work-dir', tmp_path / topology)
        assert done.returncode == 0, done.stderr
        (line,) = (tmp_path / topology / 'iou.jsonl').read_text().splitlines()
        record = json.loads(line)
        found[topology] = {
            name: dict(zip(record['classes'], output['IoU'], strict=True))
            for name, output in record['outputs'].items()
        }
    alone, paired = found['none'], found['cross']
    assert alone['top']['box'] < 35
    assert alone['bottom']['picture'] < 35
    assert alone['top']['picture'] > 55
    assert alone['bottom']['box'] > 55
    for network in ('top', 'bottom', 'ensemble'):
        assert paired[network]['box'] > 55
        assert paired[network]['picture'] > 55
