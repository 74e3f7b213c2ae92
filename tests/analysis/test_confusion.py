from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest

from mmseg_coop.analysis.confusion import confusion_matrix, normalized
from mmseg_coop.evaluation import CoopIoUMetric

TOOL = 'tools/analysis_tools/confusion_matrix.py'
OUTPUTS = ('top', 'bottom', 'ensemble')


def counted(maps, output):
    """Confusion matrix counted pixel by pixel."""
    matrix = np.zeros((11, 11), int)
    for frame in maps:
        valid = frame['ground truth'] != 255
        np.add.at(matrix, (frame['ground truth'][valid], frame[output][valid]), 1)
    return matrix


def written(path):
    header, *lines = csv.reader(path.open())
    assert header[1:] == [line[0] for line in lines]
    assert header[1:3] == ['sky', 'building']
    return np.array([line[1:] for line in lines], int)


def test_confusion_of_every_output_is_that_of_the_evaluator(evaluated, tool, rows, tmp_path):
    done = tool(TOOL, *evaluated.pair, '--out', tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    assert '4/4' in done.stderr
    metric = CoopIoUMetric(iou_metrics=['mIoU'], prefix='x')
    metric.dataset_meta = evaluated.meta
    metric.process({}, evaluated.samples)
    metrics = metric.compute_metrics(metric.results)
    printed = {row[0]: row for row in rows(done.stdout)[1:]}
    assert tuple(printed) == OUTPUTS
    for name in OUTPUTS:
        matrix = written(tmp_path / f'out/{name}.csv')
        np.testing.assert_array_equal(matrix, counted(evaluated.maps.values(), name))
        assert printed[name][1] == str(4 * 60 * 64)
        assert float(printed[name][2]) == pytest.approx(metrics[f'{name}/aAcc'], abs=0.011)
        miou, _, over = printed[name][3].partition(' ')
        assert float(miou) == pytest.approx(metrics[f'{name}/mIoU'], abs=0.011)
        assert over == '(10 of 11 classes)'
        figure = cv2.imread(str(tmp_path / f'out/{name}.png'))
        assert min(figure.shape[:2]) > 500
        assert figure.std() > 10


def test_confusion_of_a_model_with_one_output_on_some_images(evaluated, tool, tmp_path):
    words = (*evaluated.plain, '--max-images', 2, '--normalize', 'prediction', '--optimize')
    done = tool(TOOL, *words, '--out', tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    files = [path.name for path in (tmp_path / 'out').iterdir()]
    assert sorted(files) == ['prediction.csv', 'prediction.png']
    frames = [evaluated.maps[name] for name in sorted(evaluated.maps)[:2]]
    matrix = written(tmp_path / 'out/prediction.csv')
    np.testing.assert_allclose(matrix, counted(frames, 'prediction'), atol=2)  # but for rounding


@pytest.mark.parametrize(('by', 'axis'), [('label', 1), ('prediction', 0)])
def test_shares_sum_to_a_hundred(by, axis):
    shares = normalized(np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), by)
    np.testing.assert_allclose(shares.sum(axis)[:2], 100)
    assert np.isnan(shares.take(2, 1 - axis)).all()
    assert shares[0, 0] == pytest.approx(75 if by == 'label' else 60)


def test_as_a_function_it_returns_the_counts(evaluated, tmp_path):
    (tmp_path / 'prediction.csv').write_text('mine')
    words = dict(max_images=1, out=str(tmp_path), device='cpu', force=True)
    matrices = confusion_matrix(*map(str, evaluated.plain), **words)
    np.testing.assert_array_equal(matrices['prediction'], written(tmp_path / 'prediction.csv'))
    assert matrices['prediction'].sum() == 60 * 64
