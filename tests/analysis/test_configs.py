from __future__ import annotations

import json
import runpy

import pytest
import yaml
from mmengine.config import Config
from mmseg.registry import VISUALIZERS
from yapf.yapflib.yapf_api import FormatCode

from mmseg_coop.config import load_config
from mmseg_coop.errors import ConfigError
from tests.conftest import LAYOUT, MINI, ROOT

PRINT = 'tools/misc/print_config.py'
PAIR = ROOT / 'configs/cross_coop/cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
NO_C1 = ROOT / 'configs/cross_coop/cross-coop-no-c1_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'


@pytest.fixture(autouse=True)
def _laid_out(monkeypatch):
    for place in LAYOUT:
        monkeypatch.setattr(place, FormatCode, raising=False)


def test_printed_config_is_the_resolved_one(tool, tmp_path):
    done = tool(PRINT, MINI, '--cfg-options', 'model.decode_head.topology=one_way')
    (tmp_path / 'printed.py').write_text(done.stdout)
    expected = Config.fromfile(MINI)
    expected.model.decode_head.topology = 'one_way'
    assert Config.fromfile(tmp_path / 'printed.py').to_dict() == expected.to_dict()


@pytest.mark.parametrize('suffix', ['.py', '.json', '.yml'])
def test_written_config_is_the_resolved_one(tool, tmp_path, suffix):
    path = tmp_path / 'new' / f'config{suffix}'
    assert tool(PRINT, MINI, '--out', path).returncode == 0
    # JSON has no tuples.
    written, expected = (
        json.dumps(Config.fromfile(file).to_dict(), sort_keys=True) for file in (path, MINI)
    )
    assert written == expected
    assert tool(PRINT, MINI, '--out', path, '--force').returncode == 0


def test_parts_and_differences(tool):
    part = tool(PRINT, PAIR, '--key', 'model.decode_head.topology')
    assert (part.returncode, part.stdout) == (0, "topology = 'cross'\n\n")
    part = tool(PRINT, PAIR, '--key', 'train_pipeline.0')
    assert "part = dict(type='LoadSegImage')" in part.stdout
    other = tool(PRINT, PAIR, '--key', 'model', '--diff', NO_C1)
    lines = [line for line in other.stdout.splitlines() if line[:1] in ('+', '-')]
    assert [line for line in lines if line[:3] not in ('+++', '---')] == ["-            'input',"]
    same = tool(PRINT, PAIR, '--key', 'model', '--diff', PAIR)
    assert (other.returncode, same.returncode) == (1, 0)
    assert same.stdout == 'the configs do not differ\n'


def test_tables_are_up_to_date(tool):
    done = tool('tools/misc/make_tables.py', '--check')
    assert done.returncode == 0, done.stderr


def test_every_config_is_in_a_metafile():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    listed = [
        model['Config']
        for metafile in index
        for model in yaml.safe_load((ROOT / metafile).read_text())['Models']
    ]
    present = [str(path.relative_to(ROOT)) for path in ROOT.glob('configs/[!_]*/*.py')]
    assert sorted(listed) == sorted(present)


@pytest.mark.parametrize(
    ('result', 'cell'),
    [
        (dict(Source='paper'), '| 80.5 | paper |'),
        (dict(Source='derived', Derivation='80 + 0.5'), '| 80.5 | derived: 80 + 0.5 |'),
        (
            dict(Source='ours', Deviations=dict(mIoU=0.4), Seeds=[0, 1], Commit='a', Hardware='b'),
            '| 80.5 ± 0.4 | ours |',
        ),
        (dict(Source='ours', Seeds=[0, 1], Commit='a', Hardware='b'), None),
        (dict(Source='derived'), None),
        (dict(Source='paper', Derivation='80 + 0.5'), None),
        (dict(Source='guess'), None),
    ],
)
def test_figures_say_where_they_come_from(result, cell, tmp_path):
    table = runpy.run_path(str(ROOT / 'tools/misc/make_tables.py'))['table']
    model = dict(
        Name='mini',
        Config=str(MINI.relative_to(ROOT)),
        Metadata={'Parameters (M)': 1, 'GMAC': 1, 'Input size': '128x128'},
        Results=[dict(Dataset='VOC', Metrics=dict(mIoU=80.5), **result)],
    )
    metafile = tmp_path / 'metafile.yml'
    metafile.write_text(yaml.safe_dump(dict(Models=[model])))
    if cell is None:
        with pytest.raises(ConfigError, match=r'derived|ours and lacks Deviations'):
            table([metafile], tmp_path / 'README.md')
    else:
        assert cell in table([metafile], tmp_path / 'README.md')


@pytest.mark.parametrize('backend', ['TensorboardVisBackend', 'WandbVisBackend'])
def test_other_backends_are_one_line(tool, tmp_path, backend):
    """As an option of the command line, and as a line of a config that inherits."""
    option = f'visualizer.vis_backends.0.type={backend}'
    done = tool(PRINT, MINI, '--key', 'visualizer', '--cfg-options', option)
    assert f"dict(type='{backend}')" in done.stdout
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(MINI)!r}\n'
        f"visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='{backend}')])\n"
    )
    cfg = load_config(str(config))
    visualizer = VISUALIZERS.build({**cfg.visualizer, 'save_dir': str(tmp_path)})
    backends = [type(b).__name__ for b in visualizer._vis_backends.values()]
    assert backends == ['LocalVisBackend', backend]
