from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools/analysis_tools'
MINI = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
LIGHT = ROOT / 'configs/cross_coop/cross-coop_mnv2-effl0-d16_1xb6-2k_camvid-180x240.py'
PAIR = ROOT / 'configs/cross_coop/cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
DPANET = ROOT / 'configs/dpanet/dpanet_mnv2-d8_1xb6-2k_camvid-180x240.py'


def run(tool, *arguments, check=True):
    return subprocess.run(
        [sys.executable, TOOLS / tool, *map(str, arguments)],
        text=True,
        capture_output=True,
        check=check,
    )


@pytest.fixture
def call(monkeypatch, tmp_path, capfd):
    """Run a tool's main in an empty folder; returns the last line of its error."""
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.chdir(tmp_path)

    def call(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        with pytest.raises(SystemExit) as error:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        assert error.value.code
        print(error.value.code if isinstance(error.value.code, str) else '', file=sys.stderr)
        return capfd.readouterr().err.strip().splitlines()[-1]

    return call


def rows(text):
    """Rows of the Markdown tables in a text."""
    return [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in text.splitlines()
        if line.startswith('|') and '---' not in line
    ]


def test_figures_of_the_metafile_are_those_of_the_tool(tmp_path):
    run('get_flops.py', MINI, LIGHT, PAIR, DPANET, '--json', tmp_path / 'figures.json')
    figures = json.loads((tmp_path / 'figures.json').read_text())
    stated = {}
    for family in ('cross_coop', 'dpanet'):
        metafile = yaml.safe_load((ROOT / f'configs/{family}/metafile.yml').read_text())
        stated.update({model['Name']: model['Metadata'] for model in metafile['Models']})
    for name, counts in figures.items():
        total = counts['parts']['total']
        assert stated[name]['Input size'] == 'x'.join(map(str, counts['size']))
        assert stated[name]['Parameters (M)'] == pytest.approx(total['params'], abs=0.006)
        assert stated[name]['GMAC'] == pytest.approx(total['gmac'], abs=0.006)
    # two DeepLabV3+ and nothing for the paths
    pair = figures[PAIR.stem]['parts']
    assert pair['total']['params'] == pytest.approx(114.05, abs=0.01)
    assert 'cooperative paths' not in pair
    assert list(figures[MINI.stem]['parts']) == [
        *('backbone top', 'backbone bottom', 'cooperative paths'),
        *('ASPP top', 'ASPP bottom', 'decoder top', 'decoder bottom', 'total'),
    ]
    # The products of attention belong to the attention.
    assert {'decode_head spa', 'decode_head cpa'} < set(figures[DPANET.stem]['parts'])
    for parts in (counts['parts'] for counts in figures.values()):
        assert 'other products' not in parts
        total = parts.pop('total')
        for key in ('params', 'gmac'):
            assert sum(part[key] for part in parts.values()) == pytest.approx(total[key])


def test_products_outside_of_layers_are_counted_where_they_are():
    sys.path.insert(0, str(TOOLS))
    try:
        from get_flops import count
    finally:
        sys.path.remove(str(TOOLS))
    from torch import nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.query(x).flatten(2)
            return (x.mT @ x).mean(-1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Conv2d(3, 8, 1)
            self.decode_head = nn.Sequential(Attention())

        def forward(self, x, mode):
            x = self.decode_head(self.backbone(x))
            return x @ x.mT

    counts = count(Model(), (4, 5))
    assert counts['decode_head 0']['gmac'] == pytest.approx((8 * 8 * 20 + 20 * 8 * 20) / 1e9)
    assert counts['other products']['gmac'] == pytest.approx(20 / 1e9)
    assert counts['total']['gmac'] == pytest.approx((24 + 64 + 160 + 1) * 20 / 1e9)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--size', '0x65'), "--size takes HEIGHTxWIDTH such as 513x513, not '0x65'"),
        (('--json', 'there.json'), "'there.json' exists; add --force"),
    ],
)
def test_get_flops_refuses_wrong_arguments(call, tmp_path, arguments, message):
    (tmp_path / 'there.json').write_text('mine')
    assert message in call('get_flops.py', MINI, *arguments)
    assert (tmp_path / 'there.json').read_text() == 'mine'


def test_size_without_crop_size_is_that_of_the_data_preprocessor(
    call, tmp_path, monkeypatch, capfd
):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(MINI)!r}\ncrop_size = None\n'
        'model = dict(data_preprocessor=dict(size=(48, 64)))\n'
    )
    monkeypatch.setattr(sys, 'argv', ['get_flops.py', str(config)])
    runpy.run_path(str(TOOLS / 'get_flops.py'), run_name='__main__')
    assert 'config, 1 x 3 x 48 x 64' in capfd.readouterr().out.splitlines()
    config.write_text(config.read_text().replace('(48, 64)', 'None'))
    message = call('get_flops.py', config)
    assert 'it has neither crop_size nor model.data_preprocessor.size' in message


def test_a_convolution_is_counted_as_its_formula_says():
    sys.path.insert(0, str(TOOLS))
    try:
        from get_flops import count
    finally:
        sys.path.remove(str(TOOLS))
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.decode_head = nn.Conv2d(8, 5, 1)

        def forward(self, x, mode):
            return self.decode_head(self.backbone(x))

    counts = count(Model(), (16, 20))
    assert counts['backbone']['gmac'] == pytest.approx(8 * 3 * 9 * 8 * 10 / 1e9)
    assert counts['decode_head']['gmac'] == pytest.approx(5 * 8 * 8 * 10 / 1e9)
    assert counts['total']['params'] == pytest.approx((3 * 9 * 8 + 8 + 8 * 5 + 5) / 1e6)


def test_benchmark_compares_models_side_by_side():
    done = run('benchmark.py', MINI, '--vs', LIGHT, LIGHT, '--size', '65x65', '--repeats', '2')
    table = rows(done.stdout)
    header = ['model', 'parameters (M)', 'forward (ms)', 'forward peak (MiB)', 'train step (ms)']
    assert table[0][:5] == header
    assert [row[0].split(':')[0] for row in table[1:4]] == ['0', '1', '2']
    assert float(table[1][1]) == pytest.approx(1.55, abs=0.01)
    assert all(float(cell) > 0 for row in table[1:4] for cell in (row[2], row[4]))
    ratios = table[5:]
    assert [row[0] for row in ratios] == ['forward'] * 3 + ['train step'] * 3
    for one, other, both in (ratios[:3], ratios[3:]):
        assert ' + ' in both[1]
        assert float(both[2]) <= min(float(one[2]), float(other[2]))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((MINI, '--size', '65'), "--size takes HEIGHTxWIDTH in pixels, such as 513x513, not '65'"),
        ((MINI, '--repeats', '0'), '--repeats has to be at least 1'),
        ((MINI, '--threads', '-1'), '--threads has to be at least 1, not -1'),
        ((MINI, '--device', 'gpu'), "error: --device 'gpu' cannot be used here: "),
        (
            (MINI, '--size', '33x33', '--batch-size', '1', '--repeats', '1'),
            'error: the image pooling branch of ASPP cannot be trained with a batch of 1',
        ),
        (('gone.py',), "config 'gone.py' does not exist"),
    ],
)
def test_benchmark_refuses_wrong_arguments(call, arguments, message):
    assert message in call('benchmark.py', *arguments)


def test_tables_are_up_to_date():
    tool = ROOT / 'tools/misc/make_tables.py'
    done = subprocess.run(
        [sys.executable, tool, '--check'], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ('result', 'cell'),
    [
        (dict(Source='paper'), '| 80.5 | paper |'),
        (dict(Source='derived', Derivation='80 + 0.5'), '| 80.5 | derived: 80 + 0.5 |'),
        (dict(Source='derived'), None),
        (dict(Source='paper', Derivation='80 + 0.5'), None),
        (dict(Source='guess'), None),
    ],
)
def test_a_derived_figure_says_from_what(result, cell, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/misc'))
    tool = importlib.import_module('make_tables')
    model = dict(
        Name='mini',
        Config=str(MINI.relative_to(ROOT)),
        Metadata={'Parameters (M)': 1, 'GMAC': 1, 'Input size': '128x128'},
        Results=[dict(Dataset='VOC', Metrics=dict(mIoU=80.5), **result)],
    )
    metafile = tmp_path / 'metafile.yml'
    metafile.write_text(yaml.safe_dump(dict(Models=[model])))
    if cell is None:
        with pytest.raises(ValueError, match='derived'):
            tool.table([metafile], tmp_path / 'README.md', only_with_results=True)
    else:
        assert cell in tool.table([metafile], tmp_path / 'README.md', only_with_results=True)


def test_every_config_is_in_a_metafile():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    listed = [
        model['Config']
        for metafile in index
        for model in yaml.safe_load((ROOT / metafile).read_text())['Models']
    ]
    present = [str(path.relative_to(ROOT)) for path in ROOT.glob('configs/[!_]*/*.py')]
    assert sorted(listed) == sorted(present)
