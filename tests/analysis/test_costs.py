from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from torch import nn

from mmseg_coop.analysis.attention_cost import ATTENTIONS
from mmseg_coop.analysis.flops import count

ROOT = Path(__file__).resolve().parents[2]
FLOPS = 'tools/analysis_tools/get_flops.py'
BENCHMARK = 'tools/analysis_tools/benchmark.py'
ATTENTION = 'tools/analysis_tools/attention_cost.py'
LIGHT = ROOT / 'configs/cross_coop/cross-coop_mnv2-effl0-d16_1xb6-2k_camvid-180x240.py'
PAIR = ROOT / 'configs/cross_coop/cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
DPANET = ROOT / 'configs/dpanet/dpanet_mnv2-d8_1xb6-2k_camvid-180x240.py'


def test_figures_of_the_metafile_are_those_of_the_tool(mini, tool, tmp_path):
    done = tool(FLOPS, mini, LIGHT, PAIR, DPANET, '--json', tmp_path / 'figures.json')
    assert done.returncode == 0, done.stderr
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
    assert list(figures[mini.stem]['parts']) == [
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
        self.backbone = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.decode_head = nn.Sequential(Attention())

    def forward(self, x, mode):
        x = self.decode_head(self.backbone(x))
        return x @ x.mT


def test_layers_and_products_are_counted_as_their_formulas_say_where_they_are():
    counts = count(Model(), (8, 10))
    assert counts['backbone']['gmac'] == pytest.approx(8 * 3 * 9 * 20 / 1e9)
    assert counts['decode_head 0']['gmac'] == pytest.approx((8 * 8 * 20 + 20 * 8 * 20) / 1e9)
    assert counts['other products']['gmac'] == pytest.approx(20 / 1e9)
    assert counts['total']['gmac'] == pytest.approx((216 + 64 + 160 + 1) * 20 / 1e9)
    assert counts['total']['params'] == pytest.approx((3 * 9 * 8 + 8 + 8 * 8 + 8) / 1e6)


def test_size_without_crop_size_is_that_of_the_data_preprocessor(mini, tool, tmp_path):
    preprocessor = 'model = dict(data_preprocessor=dict(size=(48, 64)))\n'
    (tmp_path / 'config.py').write_text(f'_base_ = {str(mini)!r}\ncrop_size = None\n{preprocessor}')
    done = tool(FLOPS, tmp_path / 'config.py')
    assert 'config, 1 x 3 x 48 x 64' in done.stdout.splitlines()


def test_benchmark_compares_models_side_by_side(mini, tool, rows):
    words = ('--vs', LIGHT, LIGHT, '--size', '65x65', '--repeats', 2)
    done = tool(BENCHMARK, mini, *words)
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    header = ['model', 'parameters (M)', 'forward (ms)', 'forward peak (MiB)', 'train step (ms)']
    assert table[0][:5] == header
    assert [row[0].split(':')[0] for row in table[1:4]] == ['0', '1', '2']
    assert float(table[1][1]) == pytest.approx(1.55, abs=0.01)
    assert all(float(cell) > 0 for row in table[1:4] for cell in row[2:])
    ratios = table[5:]
    assert [row[0] for row in ratios] == ['forward'] * 3 + ['train step'] * 3
    for one, other, both in (ratios[:3], ratios[3:]):
        assert ' + ' in both[1]
        assert float(both[2]) <= min(float(one[2]), float(other[2]))


def test_table_1_by_its_own_count(tool, rows):
    done = tool(ATTENTION, '--count', 'ann')
    assert rows(done.stdout)[1:] == [
        ['non-local', '96x96', '58.0', '62.8'],
        ['SPA', '96x96', '0.0', '12.3'],
        ['non-local', '256x128', '601.4', '618.5'],
        ['SPA', '256x128', '0.0', '43.6'],
    ]
    assert 'were not counted' in done.stdout


def test_every_attention_is_measured(tool, rows):
    channels, pixels = 16, 10 * 12
    done = tool(ATTENTION, '--sizes', '10x12', '--channels', 16, '--train', '--repeats', 1)
    assert done.returncode == 0, done.stderr
    header, *table = rows(done.stdout)
    costs, ratios = table[: len(ATTENTIONS)], table[len(ATTENTIONS) :]
    assert header[:4] == ['attention', 'parameters', 'GMAC', 'pooling GMAC']
    assert header[4:6] == ['forward (ms)', 'forward peak (MiB)']
    assert header[6:] == ['training step (ms)', 'training step peak (MiB)']
    found = {name: [float(cell) for cell in cells] for name, *cells in costs}
    assert list(found) == list(ATTENTIONS)
    for name, (_, gmac, _, *measured) in found.items():
        assert gmac > 0, name
        assert all(figure >= 0 for figure in measured), name

    spa, conv, cpa = found['SPA'], found['SPA-conv'], found['CPA']
    assert spa[0] == cpa[0] == 1
    projections = 2 * (16 * 2 + 2) + 16 * 16 + 16
    assert conv[0] == found['literal-SPA-conv'][0] == projections + 1
    # the two products of N x T; queries from N pixels, keys and values from T anchors
    assert spa[1] == pytest.approx(2 * channels * 325 * pixels / 1e9, rel=0.01)
    products = (2 + channels) * 325 * pixels + channels * 2 * pixels + channels * 18 * 325
    assert conv[1] == pytest.approx(products / 1e9, rel=0.01)
    assert cpa[1] == pytest.approx(2 * channels**2 * pixels / 1e9, rel=0.01)
    # the rows of all levels, then the columns of each: 35 and 325 of them, for keys and values
    assert spa[2] == pytest.approx(2 * channels * (35 * pixels + 325 * 12) / 1e9, rel=0.01)
    assert cpa[2] == found['literal-SPA'][2] == 0

    assert ratios[0][0] == 'ratio'
    pairs = {row[0] for row in ratios}
    assert {'NonLocal2d by SPA', 'literal-SPA-conv by SPA-conv', 'CAM by CPA'} <= pairs
    # only that there are figures: the times of such small maps say nothing, least of all under load
    assert all(float(cell) >= 0 for row in ratios[1:] for cell in row[1:])


def test_peak_is_that_of_the_tensors_and_what_does_not_fit_is_said(tool, rows):
    done = tool(
        ATTENTION,
        *('--sizes', '64x64', '--channels', 64, '--repeats', 1, '--memory', 0.05),
        *('--only', 'NonLocal2d', 'CAM', 'CPA'),
    )
    assert done.returncode == 0, done.stderr
    found = {name: cells for name, *cells in rows(done.stdout)[1:]}
    # energies and softmax, 64 MiB each, with half as much for the unexpected
    assert found['NonLocal2d'][3:] == ['does not fit', 'needs about 0.19 GiB']
    # the maps that live at a time, 1 MiB each: the sum beside both of its terms; the sum alone
    assert float(found['CAM'][4]) == pytest.approx(3, abs=0.1)
    assert float(found['CPA'][4]) == pytest.approx(1, abs=0.1)
