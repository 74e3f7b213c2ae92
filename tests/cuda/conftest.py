"""The suite of ``make test-cuda``, next to what else is marked ``cuda``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.conftest import MINI, ROOT

CONFIGS = sorted(ROOT.glob('configs/[!_]*/*.py'))


def families():
    """A config for each combination of head, topology, fusion, backbones and dataset."""
    found = {}
    for path in CONFIGS:
        cfg = Config.fromfile(path)
        head, backbone = cfg.model.decode_head, cfg.model.backbone
        networks = backbone.get('networks', dict(single=backbone)).values()
        key = [(part.type, part.get('depth')) for part in networks]
        key += [head.type, head.get('topology'), head.get('fusion'), cfg.dataset_type]
        found[str(key)] = path
    return list(found.values())


def pytest_generate_tests(metafunc):
    """On a GPU all families of the shipped configs, on the CPU the smallest config."""
    if 'shipped' in metafunc.fixturenames:
        on_gpu = metafunc.config.option.markexpr == 'cuda'
        configs = families() if on_gpu else [MINI]
        metafunc.parametrize('shipped', configs, ids=[config.stem for config in configs])


@pytest.fixture
def keep():
    """Keep a text under a name in the folder that ``MMSEG_COOP_FIGURES`` names, if it does."""

    def write(name, text):
        folder = os.environ.get('MMSEG_COOP_FIGURES')
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_text(text)

    return write
