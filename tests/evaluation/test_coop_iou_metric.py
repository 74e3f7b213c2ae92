from __future__ import annotations

import logging

import mmcv
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric
from PIL import Image

from mmseg_coop.errors import DataError
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


def counted(samples, name):
    """IoU of every class in percent, pixel by pixel; NaN for a class that occurs nowhere."""
    hits, unions = [0] * len(CLASSES), [0] * len(CLASSES)
    for sample in samples:
        label, prediction = sample['gt_sem_seg']['data'], sample['pred_outputs'][name]
        for pixel in zip(label.flatten().tolist(), prediction.flatten().tolist(), strict=True):
            if pixel[0] != 255:
                for index in set(pixel):
                    unions[index] += 1
                hits[pixel[0]] += pixel[0] == pixel[1]
    return [100 * hit / union if union else np.nan for hit, union in zip(hits, unions, strict=True)]


@pytest.mark.parametrize('seed', range(8))
def test_every_output_is_measured_over_all_pixels_of_all_images(seed):
    """Whatever the sizes of the images, their number, the ignored pixels and absent classes."""
    generator = np.random.default_rng(seed)
    samples = []
    for size in generator.integers(1, 10, (generator.integers(1, 6), 2)).tolist():
        (sample,) = make_samples(count=1, size=size, chosen=NAMES[seed % 3])
        if seed % 2:
            sample['gt_sem_seg']['data'][sample['gt_sem_seg']['data'] == 2] = 255
        samples.append(sample)
    metrics = evaluate(CoopIoUMetric(), samples)
    for name in NAMES:
        expected = counted(samples, name)
        mean = np.nanmean(expected) if np.isfinite(expected).any() else np.nan
        assert metrics[f'{name}/mIoU'] == pytest.approx(mean, abs=0.006, nan_ok=True)
    assert metrics['mIoU'] == pytest.approx(metrics[f'{NAMES[seed % 3]}/mIoU'], nan_ok=True)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(iou_metrics=['mIou']), 'iou_metrics=.*mIou.* some of'),
        (dict(iou_metrics=[]), 'iou_metrics=.* some of'),
        (dict(beta=0), 'beta=0 has to be greater than 0'),
    ],
)
def test_what_cannot_be_measured_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoopIoUMetric(**arguments)


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


@pytest.fixture
def log(caplog):
    """What mmengine logs."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        yield caplog
    logger.removeHandler(caplog.handler)


def table_rows(log):
    """Cells of the last table of the IoU."""
    messages = [r.getMessage() for r in log.records if 'IoU per class' in r.getMessage()]
    return [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in messages[-1].splitlines()
        if line.startswith('|')
    ]


def warnings_of(log):
    messages = [r.getMessage() for r in log.records if r.levelno == logging.WARNING]
    return [message for message in messages if not message.startswith('The prefix is not set')]


def test_the_table_has_outputs_as_rows_and_classes_as_columns(log):
    samples = make_samples()
    evaluate(CoopIoUMetric(), samples)
    assert warnings_of(log) == []
    rows = table_rows(log)
    assert rows[0] == ['output', *CLASSES, 'mean IoU']
    assert [row[0] for row in rows[1:]] == list(NAMES)
    for row in rows[1:]:
        shown = [float(value) for value in row[1:]]
        values = counted(samples, row[0])
        assert shown == pytest.approx([*values, np.mean(values)], abs=0.051)


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


def test_masks_of_0_and_255_do_not_pass_for_a_perfect_model(log):
    """Their foreground is ignored, so that all background is 100 percent."""
    samples = make_samples(count=2)
    for sample in samples:
        sample['gt_sem_seg']['data'] = torch.randint(0, 2, (1, 8, 9)) * 255
        for label_map in sample['pred_outputs'].values():
            label_map.zero_()
    metric = CoopIoUMetric()
    assert evaluate(metric, samples)['mIoU'] == 100
    (warning,) = warnings_of(log)
    assert warning.startswith('2 of 3 classes have no pixel in the labels of this evaluation')
    assert 'evaluation: car, tree.' in warning
    assert 'masks saved as 0 and 255' in warning
    assert [row[-1] for row in table_rows(log)[1:]] == ['100.00 (1 of 3 classes)'] * 3
    evaluate(metric, samples)  # the next evaluation of the run
    assert len(warnings_of(log)) == 1
    assert table_rows(log)[1][-1] == '100.00 (1 of 3 classes)'


def test_an_absent_class_counts_for_the_outputs_that_predict_it(log):
    samples = make_samples(count=1)
    samples[0]['gt_sem_seg']['data'] = torch.tensor([[[0, 0, 1, 1]]])
    for name, prediction in zip(NAMES, ([0, 0, 1, 1], [0, 2, 1, 1], [0, 0, 1, 1]), strict=True):
        samples[0]['pred_outputs'][name].resize_(1, 1, 4).copy_(torch.tensor([[prediction]]))
    metrics = evaluate(CoopIoUMetric(), samples)
    assert metrics['top/mIoU'] == 100
    assert metrics['bottom/mIoU'] == 50  # 1/2, 1 and 0 for what is not there
    of_two = '100.00 (2 of 3 classes)'
    assert [row[-1] for row in table_rows(log)[1:]] == [of_two, '50.00', of_two]
    assert '1 of 3 classes have no pixel in the labels of this evaluation: tree' in log.text
    log.clear()
    metrics = evaluate(CoopIoUMetric(nan_to_num=0), samples)
    assert metrics['top/mIoU'] == pytest.approx(66.67)
    assert 'Undefined values count as nan_to_num=0' in log.text
    assert table_rows(log)[1][-1] == '66.67'


def test_a_label_of_another_size_than_the_prediction_is_named():
    samples = make_samples(count=1)
    samples[0]['gt_sem_seg']['data'] = torch.zeros(1, 4, 5, dtype=torch.long)
    message = r'label of image dir/0\.jpg is 4x5, but its prediction is 8x9 .*load labels behind'
    with pytest.raises(DataError, match=message):
        evaluate(CoopIoUMetric(), samples)


def test_an_image_without_a_label_is_named(tmp_path):
    samples = make_samples(count=1)
    del samples[0]['gt_sem_seg']
    with pytest.raises(DataError, match=r'image dir/0\.jpg has no label.*format_only=True'):
        evaluate(CoopIoUMetric(), samples)
    evaluate(CoopIoUMetric(format_only=True, output_dir=str(tmp_path)), samples)
    assert (tmp_path / '0.png').exists()


@pytest.mark.parametrize('palette', [False, True])
def test_written_labels_undo_reduce_zero_label(tmp_path, palette):
    (sample,) = make_samples(count=1)
    sample['reduce_zero_label'] = True
    metric = CoopIoUMetric(output_dir=str(tmp_path), palette=palette, format_only=True)
    metric.dataset_meta = dict(classes=CLASSES, palette=[[i, 2 * i, 9] for i in range(3)])
    metric.process({}, [sample])
    with Image.open(tmp_path / '0.png') as image:
        labels = sample['pred_outputs']['bottom'][0].numpy()
        assert np.array_equal(np.array(image), labels + 1)
        if palette:
            expected = np.stack([labels, 2 * labels, np.full_like(labels, 9)], axis=-1)
            assert np.array_equal(np.array(image.convert('RGB')), expected)


def test_all_outputs_of_a_model_with_one(tmp_path):
    sample = {k: v for k, v in make_samples(count=1)[0].items() if 'output' not in k}
    evaluate(CoopIoUMetric(output_dir=str(tmp_path), outputs='all', format_only=True), [sample])
    assert [file.name for file in tmp_path.iterdir()] == ['0.png']


def test_outputs_that_contradict_the_prediction_are_refused():
    samples = make_samples(count=1)
    samples[0]['pred_sem_seg'] = dict(data=samples[0]['pred_outputs']['top'])
    with pytest.raises(ValueError, match=r"not the output 'bottom'.*CoopTTAModel"):
        evaluate(CoopIoUMetric(), samples)
