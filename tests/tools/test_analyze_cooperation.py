from __future__ import annotations

import csv
import itertools
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from mmseg_coop.config import load_config
from mmseg_coop.evaluation import CoopIoUMetric

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/analysis_tools/analyze_cooperation.py'
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
SINGLE = ROOT / 'configs/dpanet/dpanet_mnv2-d8_1xb6-2k_camvid-180x240.py'
SITES = ['input', 'aspp', 'aspp_output', 'low_level', 'decoder']
OUTPUTS = ['top', 'bottom', 'ensemble']
NO_C1 = ['aspp', 'aspp_output', 'low_level', 'decoder']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two images and a checkpoint whose predictions vary."""
    root = tmp_path_factory.mktemp('cooperation')
    rng = np.random.default_rng(0)
    for index in range(2):
        for kind in ('img_dir', 'ann_dir'):
            (root / kind / 'val').mkdir(parents=True, exist_ok=True)
        image = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (64, 64))
        Image.fromarray(image).save(root / f'img_dir/val/{index}.jpg')
        label = rng.integers(0, 11, (64, 64)).astype(np.uint8)
        label[:4] = 255
        Image.fromarray(label).save(root / f'ann_dir/val/{index}.png')
    init_default_scope('mmseg')
    torch.manual_seed(0)
    for config in (CONFIG, SINGLE):
        model = MODELS.build(load_config(str(config)).model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if 'conv_seg.weight' in name:
                    parameter.normal_()
        torch.save(dict(state_dict=model.state_dict(), meta={}), root / f'{config.stem}.pth')
    return root


def options(root):
    return [
        f'test_dataloader.dataset.data_root={root}',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ]


def table(path):
    with path.open() as file:
        return list(csv.reader(file))


@pytest.fixture(scope='module')
def analysed(folder):
    out = folder / 'out'
    done = subprocess.run(
        [
            *(sys.executable, TOOL, CONFIG, folder / f'{CONFIG.stem}.pth', '--out-dir', out),
            *('--cka-positions', '16', '--cfg-options', *options(folder)),
        ],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out, done


def reference_miou(folder, connections):
    """What a model scores that is built with these connections only."""
    cfg: Config = load_config(str(CONFIG))
    cfg.model.decode_head.connections = connections
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, str(folder / f'{CONFIG.stem}.pth'), map_location='cpu')
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, 'data_root': str(folder)})
    metric = CoopIoUMetric(iou_metrics=['mIoU'], prefix='x')
    metric.dataset_meta = dataset.metainfo
    for item in dataset:
        batch = {key: [value] for key, value in item.items()}
        with torch.no_grad():
            metric.process(batch, [sample.to_dict() for sample in model.test_step(batch)])
    metrics = metric.compute_metrics(metric.results)
    return [metrics[f'{output}/mIoU'] for output in OUTPUTS]


@pytest.mark.parametrize(
    ('row', 'connections'), [('(nothing)', SITES), ('input', NO_C1), ('(all)', [])]
)
def test_switching_off_is_as_building_without(folder, analysed, row, connections):
    rows = {
        line[0]: [float(cell) for cell in line[1:]] for line in table(analysed[0] / 'sites.csv')[1:]
    }
    assert list(rows) == ['(nothing)', *SITES, '(all)']
    assert rows[row][:3] == pytest.approx(reference_miou(folder, connections), abs=0.011)
    change = np.subtract(rows[row][:3], rows['(nothing)'][:3])
    assert rows[row][3:] == pytest.approx(change, abs=0.011)


def test_switching_off_changes_the_outputs(analysed):
    rows = table(analysed[0] / 'sites.csv')[1:]
    assert len({tuple(row[1:4]) for row in rows}) == len(rows)


def test_likeness_is_measured_at_every_layer(analysed):
    rows = table(analysed[0] / 'cka.csv')[1:]
    assert [row[0] for row in rows] == (
        ['input', *['aspp'] * 5, 'aspp_output', 'low_level', *['decoder'] * 2]
    )
    before, after = np.array([row[3:5] for row in rows], float).T
    pooled = 5
    assert rows[pooled][5] == '2*'  # one position an image, fewer than channels
    assert (np.delete(before, pooled) < 1).all()
    assert (before > 0).all()
    # A sum that goes both ways leaves both networks with one map, unless a convolution matches it.
    assert (after[1:] == 1).all()


def test_gains_are_differences_of_class_iou(analysed):
    header, *rows = table(analysed[0] / 'classes.csv')
    assert header == ['class', *OUTPUTS, 'top - bottom', 'ensemble - best network']
    assert [row[0] for row in rows][:2] == ['sky', 'building']
    for row in rows:
        top, bottom, ensemble, gain, over_best = map(float, row[1:])
        assert gain == pytest.approx(top - bottom, abs=0.011)
        assert over_best == pytest.approx(ensemble - max(top, bottom), abs=0.011)
    mean = [np.mean([float(row[column]) for row in rows]) for column in (1, 2, 3)]
    total = table(analysed[0] / 'sites.csv')[1][1:4]
    assert mean == pytest.approx([float(cell) for cell in total], abs=0.011)


def test_page_has_the_tables_and_the_plots(analysed):
    out, done = analysed
    page = (out / 'cooperation.md').read_text()
    assert page in done.stdout
    for name in ('sites', 'cka', 'classes'):
        for row in table(out / f'{name}.csv'):
            assert '| ' + ' | '.join(row) + ' |' in page
    picture = cv2.imread(str(out / 'cooperation.png'))
    assert min(picture.shape[:2]) > 1000
    for quarter in itertools.product((0, 1), (0, 1)):
        half = [size // 2 for size in picture.shape[:2]]
        part = picture[tuple(slice(q * h, (q + 1) * h) for q, h in zip(quarter, half, strict=True))]
        assert part.std() > 10


@pytest.fixture
def linear_cka(monkeypatch):
    monkeypatch.syspath_prepend(TOOL.parent)
    return runpy.run_path(str(TOOL))['LinearCKA']


def test_likeness_equals_its_definition(linear_cka):
    """HSIC of the Gram matrices, equation 3 and table 1 of Kornblith et al."""
    x, y = torch.randn(3, 5, 4, 6).double(), torch.randn(3, 7, 4, 6).double()
    y[:, :5] += 0.5 * x
    cka = linear_cka(positions=24)
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


def test_likeness_of_maps_of_two_sizes(linear_cka):
    small = torch.rand(2, 4, 4, 4)
    cka = linear_cka(positions=16)
    cka.update(small, small.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert cka.value() == pytest.approx(1)
    cka = linear_cka(positions=16)
    cka.update(small, torch.ones(2, 3, 4, 4))
    assert np.isnan(cka.value())


@pytest.mark.parametrize(
    ('config', 'arguments', 'message'),
    [
        (SINGLE, (), 'has no networks that could cooperate'),
        (CONFIG, ('--split', 'val'), 'error: data root'),
        (CONFIG, ('--max-images', '0'), '--max-images has to be at least 1, not 0'),
        (CONFIG, ('--device', 'gpu'), "error: --device 'gpu' cannot be used here: "),
    ],
)
def test_wrong_input_ends_in_one_line(folder, monkeypatch, capfd, config, arguments, message):
    monkeypatch.syspath_prepend(TOOL.parent)
    command = [
        TOOL,
        config,
        folder / f'{config.stem}.pth',
        '--out-dir',
        folder / 'none',
        *arguments,
    ]
    monkeypatch.setattr(sys, 'argv', [*map(str, command), '--cfg-options', *options(folder)])
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert message in f'{capfd.readouterr().err}{error.value}'
    assert not (folder / 'none').exists()
