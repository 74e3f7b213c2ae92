from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmseg.registry import METRICS, MODELS

README = (Path(__file__).resolve().parents[1] / 'README.md').read_text()


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The config that the README gives for a project of one's own."""
    blocks = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
    (block,) = [block for block in blocks if 'custom_imports' in block]
    file = tmp_path_factory.mktemp('readme') / 'mine.py'
    file.write_text(block)
    return Config.fromfile(file)


def test_the_config_for_ones_own_project_trains_and_predicts(config, train_batch):
    model = MODELS.build(config.model)
    batch = model.data_preprocessor(train_batch(num_classes=19), training=True)
    losses = model(**batch, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    model.eval()
    with torch.no_grad():
        batch = model.data_preprocessor(train_batch(), training=False)
        prediction = model(**batch, mode='predict')[0]
    assert prediction.pred_sem_seg.data.shape[-2:] == (64, 64)
    assert METRICS.build(config.val_evaluator).metrics == ['mIoU']
