from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
import yaml
from mmcv.cnn import NonLocal2d
from PIL import Image
from torch import nn

from mmseg_coop.analysis import growth
from mmseg_coop.analysis.attention_cost import ATTENTIONS, SDPANonLocal2d
from mmseg_coop.analysis.benchmark import Subject
from mmseg_coop.analysis.flops import count
from mmseg_coop.analysis.measure import interleaved_seconds, most_expensive
from mmseg_coop.apis import build_model
from mmseg_coop.config import load_config
from mmseg_coop.errors import ConfigError
from tests.conftest import MINI, ROOT

FLOPS = 'tools/analysis_tools/get_flops.py'
BENCHMARK = 'tools/analysis_tools/benchmark.py'
ATTENTION = 'tools/analysis_tools/attention_cost.py'
LIGHT = ROOT / 'configs/cross_coop/cross-coop_mnv2-effl0-d16_1xb6-600_camvid-180x240.py'
PAIR = ROOT / 'configs/cross_coop/cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
DPANET = ROOT / 'configs/dpanet/dpanet_mnv2-d8_1xb6-600_camvid-180x240.py'

CPU = torch.device('cpu')


def test_figures_of_the_metafile_are_those_of_the_tool(tool, tmp_path):
    done = tool(FLOPS, MINI, LIGHT, PAIR, DPANET, '--json', tmp_path / 'figures.json')
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


def test_size_without_crop_size_is_that_of_the_data_preprocessor(tool, tmp_path):
    preprocessor = 'model = dict(data_preprocessor=dict(size=(48, 64)))\n'
    (tmp_path / 'config.py').write_text(f'_base_ = {str(MINI)!r}\ncrop_size = None\n{preprocessor}')
    done = tool(FLOPS, tmp_path / 'config.py')
    assert 'config, 1 x 3 x 48 x 64' in done.stdout.splitlines()


def test_benchmark_compares_models_side_by_side(tool, rows):
    words = ('--vs', LIGHT, LIGHT, '--size', '65x65', '--repeats', 2)
    done = tool(BENCHMARK, MINI, *words)
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


def test_options_are_those_of_the_first_model_which_is_measured_without_as_well(tool, rows):
    words = ('--part', 'backbone', '--modes', 'forward', '--size', '33x33', '--repeats', 1)
    done = tool(BENCHMARK, MINI, '--optimize', '--profile', '--vs', MINI, *words)
    assert done.returncode == 0, done.stderr
    assert 'options: fuse=True channels_last=True' in done.stdout
    assert f'torch {torch.__version__.split("+")[0]}' in done.stdout
    table = rows(done.stdout)
    assert table[0][2:] == ['forward (ms)', 'forward peak (MiB)']
    assert [row[0] for row in table[1:4]] == [
        *(f'0: {MINI.stem} with options', f'1: {MINI.stem}', f'2: {MINI.stem}')
    ]
    assert len({row[1] for row in table[1:4]}) == 1
    assert [row[1] for row in table[5:7]] == [f'1: {MINI.stem}', f'2: {MINI.stem}']
    with_options, without = table[8:13], table[13:]
    assert 'with options' in with_options[0][0]
    assert len(without) == 5
    for profile in (with_options, without):
        shares = [float(row[1].rstrip('%')) for row in profile]
        assert shares == sorted(shares, reverse=True)
    subject = Subject(load_config(str(MINI)), (1, 33, 33), device=CPU, part='backbone')
    for options, has_norms in (({}, True), (dict(fuse=True), False), ({}, True)):
        found = most_expensive(subject.forward(**options), CPU, count=10**6)
        assert any('batch_norm' in key for key, _, _ in found) is has_norms
    done = tool(BENCHMARK, MINI, '--part', 'neck')
    assert (done.returncode, done.stdout) == (1, '')
    assert "'neck' is no part of CrossCoopEncoderDecoder, which has data_prep" in done.stderr


def test_the_most_expensive_operators_are_named_with_their_shapes():
    a, b = torch.rand(1024, 999), torch.rand(999, 1024)
    found = most_expensive(lambda: (a @ b).relu(), CPU)
    assert found[0][:2] == ('aten::mm', '1024x999 999x1024')
    assert sum(share for _, _, share in found) == pytest.approx(1, abs=0.01)


def test_a_gpu_is_warmed_up_and_timed_by_events_while_nothing_else_runs(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append('event')

        def elapsed_time(self, end):
            return 250.0

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: log.append('wait'))
    monkeypatch.setattr(torch.cuda, 'device', lambda device: nullcontext())
    functions = dict(a=lambda: log.append('a'), b=lambda: log.append('b'))
    seconds = interleaved_seconds(functions, repeats=2, device=torch.device('cuda'))
    assert seconds == dict(a=[0.25, 0.25], b=[0.25, 0.25])
    assert log[:10] == ['a'] * 5 + ['b'] * 5
    each = [['wait', 'event', name, 'event', 'wait'] for name in 'ab']
    assert log[10:] == 2 * (each[0] + each[1])


def test_growth_is_measured_and_drawn_beside_straight_lines(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(growth, 'NETWORKS', (1, 3))
    monkeypatch.setattr(growth, 'SIDES', ((1, 1), (2, 1)))
    monkeypatch.setattr(growth, 'CLASSES', (2, 5))
    chart = tmp_path / 'growth.png'
    found = growth.draw_growth(str(MINI), out=str(chart), size=(17, 17), repeats=1, threads=1)
    assert Image.open(chart).size[0] > 1000
    assert capsys.readouterr().out.count('| train | memory |') == 3
    points = {what: [x for x, _ in curves['train', 'time']] for what, curves in found.items()}
    assert points == dict(networks=[1, 3], pixels=[1, 2], classes=[2, 5])
    for curves in found.values():
        assert list(curves) == [(m, q) for m in ('forward', 'train') for q in ('time', 'memory')]
    (_, one), (_, three) = found['networks']['train', 'memory']
    assert 2 < three / one < 5
    with pytest.raises(ConfigError, match='has no networks to vary'):
        growth.draw_growth(str(DPANET), out=str(tmp_path / 'other.png'))


def test_a_pair_is_varied_by_its_own_networks_in_turn():
    cfg = growth.vary(load_config(str(LIGHT)), 3, 7)
    assert list(cfg.model.backbone.networks) == ['top0', 'bottom1', 'top2']
    assert list(cfg.model.decode_head.networks) == ['top0', 'bottom1', 'top2']
    assert list(cfg.model.backbone.normalize) == ['bottom1']
    assert cfg.model.decode_head.num_classes == 7
    assert build_model(cfg).output_names == ('top0', 'bottom1', 'top2', 'ensemble')


def test_distance_from_a_straight_line():
    assert growth.straight_line([(1, 5), (2, 7), (4, 11)]) == pytest.approx((2, 3, 0), abs=1e-9)
    assert growth.straight_line([(x, x**2) for x in range(1, 9)])[2] > 0.2


def test_the_fused_non_local_block_is_the_non_local_block():
    block, fused = NonLocal2d(16, zeros_init=False), SDPANonLocal2d(16)
    fused.load_state_dict(block.state_dict())
    x = torch.randn(2, 16, 5, 7)
    with torch.profiler.profile() as record:
        found = fused(x)
    torch.testing.assert_close(found, block(x), rtol=1e-5, atol=1e-6)
    # the fused kernel, not its substitute, which holds the whole attention map
    assert any('flash_attention' in event.key for event in record.key_averages())


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
