from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from mmseg_coop.analysis.curves import read_run, smoothed

TOOL = 'tools/analysis_tools/plot_logs.py'
OUTPUTS = ('top', 'bottom', 'ensemble')


def write_log(run, start, *lines):
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
    write_log(tmp_path / 'pair', '20260101_000000', *first, val_line(40, 99))
    resumed = [train_line(30, 2), train_line(40, 1), val_line(40, 48)]
    write_log(tmp_path / 'pair', '20260102_000000', *resumed)
    write_log(tmp_path / 'single', '20260101_000000', train_line(10, 2), {'mIoU': 30.5, 'step': 10})
    return tmp_path / 'pair', tmp_path / 'single'


def test_curves_of_several_runs(runs, tmp_path, tool, rows):
    done = tool(TOOL, *runs, '--out', tmp_path / 'curves.png')
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)[1:] == [
        ['pair', '40', '1.0000', 'top', '50.00', '20', '48.00'],
        ['pair', '40', '1.0000', 'bottom', '51.00', '20', '49.00'],
        ['pair', '40', '1.0000', 'ensemble', '52.00', '20', '50.00'],
        ['single', '10', '2.0000', 'prediction', '30.50', '10', '30.50'],
    ]
    figure = cv2.imread(str(tmp_path / 'curves.png'))
    assert figure.shape[1] > 2 * figure.shape[0] > 1000
    for panel in np.array_split(figure, 3, axis=1):
        colored = panel.max(2).astype(int) - panel.min(2) > 50
        assert colored.sum() > 100  # a curve, not only the axes


def test_a_resumed_run_is_one_curve(runs, tmp_path):
    curves = read_run(runs[0])
    assert curves['loss'] == {10: 4, 20: 3, 30: 2, 40: 1}
    assert curves['top/mIoU'] == {20: 50, 40: 48}
    np.testing.assert_allclose(smoothed(np.array([4.0, 3, 2, 1]), 3), [4, 3.5, 3, 2])
    # A start that begins with an evaluation keeps the loss before it.
    first = [train_line(10, 4), train_line(20, 3), val_line(20, 50), train_line(30, 9)]
    write_log(tmp_path / 'run', '20260101_000000', *first)
    write_log(tmp_path / 'run', '20260102_000000', val_line(20, 40))
    curves = read_run(tmp_path / 'run')
    assert curves['loss'] == {10: 4, 20: 3}
    assert curves['top/mIoU'] == {20: 40}


def test_plot_logs_takes_files_and_names(runs, tmp_path, tool, rows):
    log = next(runs[1].rglob('scalars.json'))
    done = tool(TOOL, log, '--names', 'mine', '--losses', cwd=tmp_path)
    assert rows(done.stdout)[1][0] == 'mine'
    assert (tmp_path / 'curves.png').is_file()
