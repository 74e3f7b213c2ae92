from __future__ import annotations

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from mmseg_coop.config import load_config
from mmseg_coop.evaluation import CoopIoUMetric

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools/analysis_tools'
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
SINGLE = ROOT / 'configs/dpanet/dpanet_mnv2-d8_1xb6-2k_camvid-180x240.py'
OUTPUTS = ('top', 'bottom', 'ensemble')


@pytest.fixture
def call(monkeypatch, capfd):
    """Run a tool's main; returns its exit code (a message counts as 1) and its output."""
    monkeypatch.syspath_prepend(TOOLS)

    def run(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        try:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        except SystemExit as error:
            if isinstance(error.code, int):
                return error.code, capfd.readouterr().err.splitlines()[-1]
            return 1, error.code
        return 0, capfd.readouterr().out

    return run


def table(path):
    with path.open() as file:
        return list(csv.reader(file))


def rows(text):
    """Rows of the Markdown tables in a text."""
    return [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in text.splitlines()
        if line.startswith('|') and '---' not in line
    ]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three images and checkpoints whose predictions vary."""
    root = tmp_path_factory.mktemp('confusion')
    rng = np.random.default_rng(0)
    for kind in ('img_dir', 'ann_dir'):
        (root / kind / 'val').mkdir(parents=True)
    for index in range(3):
        image = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (64, 48))
        Image.fromarray(image).save(root / f'img_dir/val/{index}.jpg')
        label = rng.integers(0, 10, (48, 64)).astype(np.uint8)  # class 10 never occurs
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
        state = dict(state_dict=model.state_dict(), meta={})
        torch.save(state, root / f'{config.stem}.pth')
    return root


def options(root, split='test'):
    return [
        '--cfg-options',
        f'{split}_dataloader.dataset.data_root={root}',
        f'{split}_dataloader.num_workers=0',
        f'{split}_dataloader.persistent_workers=False',
        f'{split}_dataloader.batch_size=1',
    ]


def pairs(config, folder, images):
    """Confusion matrices counted pixel by pixel, and what the evaluator says of the same."""
    cfg = load_config(str(config))
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, str(folder / f'{config.stem}.pth'), map_location='cpu')
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, 'data_root': str(folder)})
    metric = CoopIoUMetric(iou_metrics=['mIoU'], prefix='x')
    metric.dataset_meta = dataset.metainfo
    matrices = {}
    for index in range(images):
        batch = {key: [value] for key, value in dataset[index].items()}
        with torch.no_grad():
            (sample,) = model.test_step(batch)
        metric.process(batch, [sample.to_dict()])
        label = cv2.imread(str(folder / f'ann_dir/val/{index}.png'), cv2.IMREAD_UNCHANGED)
        maps = {'prediction': sample.pred_sem_seg.data}
        if 'pred_outputs' in sample:
            maps = {name: sample.pred_outputs.get(name) for name in OUTPUTS}
        for name, label_map in maps.items():
            matrix = matrices.setdefault(name, np.zeros((11, 11), int))
            valid = label != 255
            np.add.at(matrix, (label[valid], label_map[0].numpy()[valid]), 1)
    return matrices, metric.compute_metrics(metric.results)


def test_confusion_of_every_output_is_that_of_the_evaluator(folder):
    out = folder / 'coop'
    done = subprocess.run(
        [
            *(sys.executable, TOOLS / 'confusion_matrix.py', CONFIG, folder / f'{CONFIG.stem}.pth'),
            *('--out-dir', out, *options(folder)),
        ],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '3/3' in done.stderr
    matrices, metrics = pairs(CONFIG, folder, 3)
    printed = {row[0]: row for row in rows(done.stdout)[1:]}
    assert tuple(printed) == OUTPUTS
    for name in OUTPUTS:
        header, *lines = table(out / f'{name}.csv')
        assert header[1:] == [line[0] for line in lines]
        assert header[1:3] == ['sky', 'building']
        counts = np.array([line[1:] for line in lines], int)
        np.testing.assert_array_equal(counts, matrices[name])
        assert printed[name][1] == str(3 * 44 * 64)
        assert float(printed[name][2]) == pytest.approx(metrics[f'{name}/aAcc'], abs=0.011)
        miou, _, over = printed[name][3].partition(' ')
        assert float(miou) == pytest.approx(metrics[f'{name}/mIoU'], abs=0.011)
        assert over == '(10 of 11 classes)'
        picture = cv2.imread(str(out / f'{name}.png'))
        assert min(picture.shape[:2]) > 500
        assert picture.std() > 10


def test_confusion_of_a_model_with_one_output(folder, call):
    out = folder / 'single'
    code, text = call(
        'confusion_matrix.py', SINGLE, folder / f'{SINGLE.stem}.pth', '--out-dir', out,
        '--max-images', 2, '--normalize', 'prediction', *options(folder),
    )  # fmt: skip
    assert code == 0, text
    assert sorted(path.name for path in out.iterdir()) == ['prediction.csv', 'prediction.png']
    matrices, _ = pairs(SINGLE, folder, 2)
    counts = np.array([line[1:] for line in table(out / 'prediction.csv')[1:]], int)
    np.testing.assert_array_equal(counts, matrices['prediction'])


@pytest.mark.parametrize(('by', 'axis'), [('label', 1), ('prediction', 0)])
def test_shares_sum_to_a_hundred(monkeypatch, by, axis):
    monkeypatch.syspath_prepend(TOOLS)
    normalized = runpy.run_path(str(TOOLS / 'confusion_matrix.py'))['normalized']
    matrix = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    shares = normalized(matrix, by)
    np.testing.assert_allclose(shares.sum(axis)[:2], 100)
    assert np.isnan(shares.take(2, 1 - axis)).all()
    assert shares[0, 0] == pytest.approx(75 if by == 'label' else 60)


def test_confusion_matrix_refuses_wrong_input(folder, call):
    checkpoint = folder / f'{CONFIG.stem}.pth'
    command = ('confusion_matrix.py', CONFIG, checkpoint, '--out-dir', folder / 'twice')
    options_ = options(folder)
    assert call(*command, '--max-images', 1, *options_)[0] == 0
    code, text = call(*command, *options_)
    assert code == 1
    assert 'exists; add --force to replace it' in text
    assert call(*command, '--max-images', 1, '--force', *options_)[0] == 0
    assert call(*command, '--max-images', 0, *options_)[0] == 2
    code, text = call('confusion_matrix.py', SINGLE, checkpoint, *options_)
    assert code == 1
    assert 'does not fit the config' in text
    code, text = call('confusion_matrix.py', CONFIG, folder / 'gone.pth', *options_)
    assert code == 1
    assert text.startswith(f"error: checkpoint '{folder / 'gone.pth'}' does not exist")
    code, text = call(
        'confusion_matrix.py', CONFIG, checkpoint, *options_, 'test_evaluator.type=CityscapesMetric'
    )
    assert code == 1
    assert "test_evaluator is ['CityscapesMetric']" in text


def write_log(run, start, lines):
    path = run / start / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))


def train_line(step, loss):
    return {'lr': 0.1 / step, 'loss': loss, 'decode.top.loss_ce': loss / 2, 'step': step}


def val_line(step, miou):
    scores = {f'{name}/mIoU': miou + index for index, name in enumerate(OUTPUTS)}
    return {'mIoU': miou + 2, **scores, 'step': step}


@pytest.fixture
def runs(tmp_path):
    """A run that was resumed at iteration 20, and one with a single output."""
    first = [train_line(10, 4), train_line(20, 3), val_line(20, 50), train_line(30, 9)]
    write_log(tmp_path / 'pair', '20260101_000000', [*first, val_line(40, 99)])
    resumed = [train_line(30, 2), train_line(40, 1), val_line(40, 48)]
    write_log(tmp_path / 'pair', '20260102_000000', resumed)
    single = [train_line(10, 2), {'mIoU': 30.5, 'step': 10}]
    write_log(tmp_path / 'single', '20260101_000000', single)
    return tmp_path / 'pair', tmp_path / 'single'


def test_curves_of_several_runs(runs, tmp_path):
    out = tmp_path / 'curves.png'
    done = subprocess.run(
        [sys.executable, TOOLS / 'plot_logs.py', *runs, '--out', out],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)[1:] == [
        ['pair', '40', '1.0000', 'top', '50.00', '20', '48.00'],
        ['pair', '40', '1.0000', 'bottom', '51.00', '20', '49.00'],
        ['pair', '40', '1.0000', 'ensemble', '52.00', '20', '50.00'],
        ['single', '10', '2.0000', 'prediction', '30.50', '10', '30.50'],
    ]
    picture = cv2.imread(str(out))
    assert picture.shape[1] > 2 * picture.shape[0] > 1000
    for panel in np.array_split(picture, 3, axis=1):
        colored = panel.max(2).astype(int) - panel.min(2) > 50
        assert colored.sum() > 100  # a curve, not only the axes


def test_a_resumed_run_is_one_curve(runs, monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    tool = runpy.run_path(str(TOOLS / 'plot_logs.py'))
    curves = tool['read_run'](runs[0])
    assert curves['loss'] == {10: 4, 20: 3, 30: 2, 40: 1}
    assert curves['top/mIoU'] == {20: 50, 40: 48}
    np.testing.assert_allclose(tool['smoothed'](np.array([4.0, 3, 2, 1]), 3), [4, 3.5, 3, 2])


def test_a_start_that_begins_with_an_evaluation_keeps_the_loss_before_it(tmp_path, call):
    first = [train_line(10, 4), train_line(20, 3), val_line(20, 50), train_line(30, 9)]
    write_log(tmp_path / 'run', '20260101_000000', first)
    write_log(tmp_path / 'run', '20260102_000000', [val_line(20, 40)])
    code, text = call('plot_logs.py', tmp_path / 'run', '--out', tmp_path / 'curves.png')
    assert code == 0
    table = rows(text)
    loss, best = table[0].index('last loss'), table[0].index('best mIoU')
    assert table[1][loss] == '3.0000'
    assert table[1][best] == '40.00'


def test_plot_logs_takes_files_and_names(runs, tmp_path, call):
    log = next(runs[1].rglob('scalars.json'))
    out = tmp_path / 'one.png'
    code, text = call('plot_logs.py', log, '--names', 'mine', '--losses', '--out', out)
    assert code == 0
    assert rows(text)[1][0] == 'mine'
    assert out.is_file()


def test_plot_logs_refuses_wrong_input(runs, tmp_path, call):
    out = tmp_path / 'curves.png'
    (tmp_path / 'empty').mkdir()
    broken = tmp_path / 'scalars.json'
    broken.write_text('{"loss": 1}\n')
    for arguments, expected in (
        ((tmp_path / 'gone',), 'does not exist'),
        ((tmp_path / 'empty',), 'has no vis_data/scalars.json'),
        ((broken,), 'line 1 of'),
    ):
        code, text = call('plot_logs.py', *arguments, '--out', out)
        assert code == 1
        assert expected in text
        assert not out.exists()
    code, text = call('plot_logs.py', *runs, '--names', 'one', '--out', out)
    assert code == 2
    assert '--names takes one name a run: 2, not 1' in text
    out.write_text('mine')
    code, text = call('plot_logs.py', *runs, '--out', out)
    assert code == 1
    assert 'exists; add --force' in text
    assert out.read_text() == 'mine'
