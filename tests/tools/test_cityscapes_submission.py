from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from PIL import Image

pytest.importorskip('cityscapesscripts', reason='mmseg takes the label ids from cityscapesscripts')

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/dpanet/dpanet_r101-d8_1xb8-112k_cityscapes-768x768.py'
#: Ids of the 19 classes that are evaluated, from the data set's description.
LABEL_IDS = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}


def test_label_ids_are_written_for_the_test_server(tmp_path):
    subprocess.run(
        [
            *(sys.executable, ROOT / 'tools/dataset_converters/make_mini_dataset.py'),
            *('--layout', 'cityscapes', '--out', tmp_path / 'data'),
            *('--train', '1', '--val', '2', '--size', '64x128'),
        ],
        check=True,
        capture_output=True,
    )
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.update(depth=18, init_cfg=None)
    cfg.model.decode_head.in_channels = 512
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'model.pth')
    # The command of configs/dpanet/README.md, on a small network and the split at hand.
    done = subprocess.run(
        [
            *(sys.executable, ROOT / 'tools/test.py', CONFIG, tmp_path / 'model.pth'),
            *('--work-dir', tmp_path / 'work', '--cfg-options'),
            f'test_dataloader.dataset.data_root={tmp_path / "data"}',
            *('test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False'),
            'test_dataloader.dataset.data_prefix.img_path=leftImg8bit/val',
            'test_dataloader.dataset.data_prefix.seg_map_path=gtFine/val',
            *('test_evaluator.type=CityscapesMetric', 'test_evaluator.format_only=True'),
            'test_evaluator.keep_results=True',
            f'test_evaluator.output_dir={tmp_path / "submission"}',
            *('model.backbone.depth=18', 'model.decode_head.in_channels=512'),
            'test_pipeline.1.scale=(128,64)',
            'test_dataloader.dataset.pipeline.1.scale=(128,64)',
        ],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = sorted((tmp_path / 'submission').glob('*.png'))
    assert len(written) == 2
    for file in written:
        label_map = np.array(Image.open(file))
        assert label_map.shape == (64, 128)
        assert set(np.unique(label_map)) <= LABEL_IDS
