from __future__ import annotations

import csv
import itertools

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import load_checkpoint
from mmseg.registry import DATASETS, MODELS

from mmseg_coop.analysis.cooperation import LinearCKA
from mmseg_coop.config import load_config
from mmseg_coop.evaluation import CoopIoUMetric

TOOL = 'tools/analysis_tools/analyze_cooperation.py'
SITES = ['input', 'aspp', 'aspp_output', 'low_level', 'decoder']
OUTPUTS = ['top', 'bottom', 'ensemble']


@pytest.fixture(scope='module')
def analysed(evaluated, tool, tmp_path_factory):
    """What the tool printed, its folder, and the tables in it by name."""
    out = tmp_path_factory.mktemp('cooperation') / 'out'
    done = tool(TOOL, *evaluated.pair, '--out', out, '--cka-positions', 16)
    assert done.returncode == 0, done.stderr
    return (
        done.stdout,
        out,
        {path.stem: list(csv.reader(path.open())) for path in out.glob('*.csv')},
    )


def reference_miou(evaluated, connections):
    """What a model scores that is built with these connections only."""
    config, checkpoint = evaluated.pair
    cfg = load_config(str(config))
    cfg.model.decode_head.connections = connections
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, str(checkpoint), map_location='cpu')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    metric = CoopIoUMetric(iou_metrics=['mIoU'], prefix='x')
    metric.dataset_meta = dataset.metainfo
    for item in dataset:
        with torch.no_grad():
            metric.process({}, [model.test_step(pseudo_collate([item]))[0].to_dict()])
    metrics = metric.compute_metrics(metric.results)
    return [metrics[f'{output}/mIoU'] for output in OUTPUTS]


def test_switching_off_is_as_building_without(evaluated, analysed):
    _, *lines = analysed[2]['sites']
    rows = {name: [float(cell) for cell in cells] for name, *cells in lines}
    assert list(rows) == ['(nothing)', *SITES, '(all)']
    assert len({tuple(row[:3]) for row in rows.values()}) == len(rows)  # each site counts
    for row, connections in (('(nothing)', SITES), ('input', SITES[1:]), ('(all)', [])):
        expected = reference_miou(evaluated, connections)
        assert rows[row][:3] == pytest.approx(expected, abs=0.011)
        change = np.subtract(rows[row][:3], rows['(nothing)'][:3])
        assert rows[row][3:] == pytest.approx(change, abs=0.011)


def test_likeness_is_measured_at_every_layer(analysed):
    _, *rows = analysed[2]['cka']
    assert [row[0] for row in rows] == (
        ['input', *['aspp'] * 5, 'aspp_output', 'low_level', *['decoder'] * 2]
    )
    before, after = np.array([row[3:5] for row in rows], float).T
    pooled = 5
    assert rows[pooled][5] == '4*'  # one position an image, fewer than channels
    assert (np.delete(before, pooled) < 1).all()
    assert (before > 0).all()
    # A sum that goes both ways leaves both networks with one map, unless a convolution matches it.
    assert (after[1:] == 1).all()


def test_gains_are_differences_of_class_iou(analysed):
    header, *rows = analysed[2]['classes']
    assert header == ['class', *OUTPUTS, 'top - bottom', 'ensemble - best network']
    assert [row[0] for row in rows][:2] == ['sky', 'building']
    rows = np.array([row[1:] for row in rows if '-' not in row], float)
    assert len(rows) == 10  # the last class never occurs
    top, bottom, ensemble, gain, over_best = rows.T
    np.testing.assert_allclose(gain, top - bottom, atol=0.011)
    np.testing.assert_allclose(over_best, ensemble - np.maximum(top, bottom), atol=0.011)
    total = np.array(analysed[2]['sites'][1][1:4], float)
    np.testing.assert_allclose(rows[:, :3].mean(0), total, atol=0.011)


def test_page_has_the_tables_and_the_plots(analysed):
    printed, out, tables = analysed
    page = (out / 'cooperation.md').read_text()
    assert page in printed
    for row in itertools.chain(*tables.values()):
        assert '| ' + ' | '.join(row) + ' |' in page
    figure = cv2.imread(str(out / 'cooperation.png'))
    assert min(figure.shape[:2]) > 1000
    for half in np.array_split(figure, 2):
        assert all(quarter.std() > 10 for quarter in np.array_split(half, 2, axis=1))


def test_likeness_equals_its_definition():
    """HSIC of the Gram matrices, equation 3 and table 1 of Kornblith et al."""
    x, y = torch.randn(3, 5, 4, 6).double(), torch.randn(3, 7, 4, 6).double()
    y[:, :5] += 0.5 * x
    cka = LinearCKA(positions=24)
    for one, other in zip(x.split(1), y.split(1), strict=True):
        cka.update(one + 3, other)
    a, b = (f.movedim(1, -1).flatten(0, 2).numpy() for f in (x, y))
    n = len(a)
    centre = np.eye(n) - 1 / n

    def hsic(k, m):
        return np.trace(k @ centre @ m @ centre) / (n - 1) ** 2

    k, m = a @ a.T, b @ b.T
    assert cka.examples == n
    assert cka.value() == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


def test_likeness_of_maps_of_two_sizes():
    small = torch.rand(2, 4, 4, 4)
    cka = LinearCKA(positions=16)
    cka.update(small, small.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert cka.value() == pytest.approx(1)
    cka = LinearCKA(positions=16)
    cka.update(small, torch.ones(2, 3, 4, 4))
    assert np.isnan(cka.value())
