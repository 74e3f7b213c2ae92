from __future__ import annotations

import logging

import mmcv
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric

from mmseg_coop.evaluation import CoopIoUMetric

CLASSES = ('road', 'car', 'tree')
NAMES = ('top', 'bottom', 'ensemble')


def make_samples(count=5, chosen='bottom', size=(8, 9)):
    samples = []
    for index in range(count):
        label = torch.randint(0, 3, (1, *size))
        maps = {}
        for rate, name in enumerate(NAMES, start=1):
            wrong = torch.rand(1, *size) < 0.1 * rate
            maps[name] = torch.where(wrong, torch.randint(0, 3, (1, *size)), label)
        label[:, 0] = 255
        samples.append(
            dict(
                img_path=f'dir/{index}.jpg',
                gt_sem_seg=dict(data=label),
                pred_sem_seg=dict(data=maps[chosen]),
                pred_outputs=maps,
                output=chosen,
                output_names=NAMES,
            )
        )
    return samples


def evaluate(metric, samples):
    metric.dataset_meta = dict(classes=CLASSES)
    for start in range(0, len(samples), 2):
        metric.process({}, samples[start : start + 2])
    return metric.evaluate(len(samples))


def miou(samples, name):
    """Mean IoU from its definition."""
    label = torch.cat([sample['gt_sem_seg']['data'] for sample in samples])
    pred = torch.cat([sample['pred_outputs'][name] for sample in samples])
    valid = label != 255
    ious = []
    for index in range(len(CLASSES)):
        a, b = (pred == index) & valid, (label == index) & valid
        ious.append(((a & b).sum() / (a | b).sum()).item())
    return 100 * sum(ious) / len(ious)


def test_every_output_is_measured_from_one_pass():
    samples = make_samples()
    metrics = evaluate(CoopIoUMetric(), samples)
    for name in NAMES:
        assert metrics[f'{name}/mIoU'] == pytest.approx(miou(samples, name), abs=0.01)
    assert metrics['mIoU'] == metrics['bottom/mIoU']
    assert metrics['top/mIoU'] > metrics['bottom/mIoU'] > metrics['ensemble/mIoU']


@pytest.mark.parametrize('name', NAMES)
def test_an_output_is_measured_as_mmseg_measures_it(name):
    samples = make_samples()
    ours = evaluate(CoopIoUMetric(iou_metrics=['mIoU', 'mDice', 'mFscore']), samples)
    stock = [
        dict(gt_sem_seg=s['gt_sem_seg'], pred_sem_seg=dict(data=s['pred_outputs'][name]))
        for s in samples
    ]
    theirs = evaluate(IoUMetric(iou_metrics=['mIoU', 'mDice', 'mFscore']), stock)
    assert {key: ours[f'{name}/{key}'] for key in theirs} == pytest.approx(dict(theirs))


def test_a_plain_model_is_measured_as_by_mmseg():
    samples = make_samples()
    for sample in samples:
        for key in ('pred_outputs', 'output', 'output_names'):
            del sample[key]
    ours, theirs = evaluate(CoopIoUMetric(), samples), evaluate(IoUMetric(), samples)
    assert dict(ours) == pytest.approx(dict(theirs))


def test_the_table_has_outputs_as_rows_and_classes_as_columns(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        samples = make_samples()
        evaluate(CoopIoUMetric(), samples)
    logger.removeHandler(caplog.handler)
    table = next(record.getMessage() for record in caplog.records if 'IoU per class' in record.msg)
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in table.splitlines()
        if line.startswith('|')
    ]
    assert rows[0] == ['output', *CLASSES, 'mean IoU']
    assert [row[0] for row in rows[1:]] == list(NAMES)
    for row in rows[1:]:
        assert float(row[-1]) == pytest.approx(miou(samples, row[0]), abs=0.01)


def test_label_maps_are_written(tmp_path):
    samples = make_samples(count=2)
    evaluate(CoopIoUMetric(output_dir=str(tmp_path / 'one')), samples)
    evaluate(CoopIoUMetric(output_dir=str(tmp_path / 'all'), outputs='all'), samples)
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*.png'))
    expected = [f'all/{name}/{i}.png' for name in NAMES for i in range(2)]
    assert written == sorted([*expected, 'one/0.png', 'one/1.png'])
    image = mmcv.imread(str(tmp_path / 'all/top/1.png'), 'unchanged')
    assert np.array_equal(image, samples[1]['pred_outputs']['top'][0].numpy())
    image = mmcv.imread(str(tmp_path / 'one/0.png'), 'unchanged')
    assert np.array_equal(image, samples[0]['pred_outputs']['bottom'][0].numpy())


def test_written_labels_undo_reduce_zero_label(tmp_path):
    samples = make_samples(count=1)
    samples[0]['reduce_zero_label'] = True
    evaluate(CoopIoUMetric(output_dir=str(tmp_path), format_only=True), samples)
    image = mmcv.imread(str(tmp_path / '0.png'), 'unchanged')
    assert np.array_equal(image, samples[0]['pred_outputs']['bottom'][0].numpy() + 1)


def test_outputs_that_contradict_the_prediction_are_refused():
    samples = make_samples(count=1)
    samples[0]['pred_sem_seg'] = dict(data=samples[0]['pred_outputs']['top'])
    with pytest.raises(ValueError, match=r"not the output 'bottom'.*CoopTTAModel"):
        evaluate(CoopIoUMetric(), samples)
