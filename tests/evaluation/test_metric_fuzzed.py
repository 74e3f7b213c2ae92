from __future__ import annotations

import math

import pytest
import torch

from mmseg_coop.evaluation import CoopIoUMetric

st = pytest.importorskip('hypothesis.strategies', reason='hypothesis draws the cases')
given = pytest.importorskip('hypothesis').given

IGNORED = 255


def images_of(data, num_classes, outputs):
    """Labels, with ignored pixels and perhaps absent classes, and label maps of every output."""
    present = data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1, unique=True))
    images = []
    for _ in range(data.draw(st.integers(1, 3))):
        size = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
        label = torch.tensor(present)[torch.randint(len(present), size)]
        label[torch.rand(size) < data.draw(st.sampled_from([0.0, 0.3]))] = IGNORED
        maps = {name: torch.randint(num_classes, size) for name in outputs}
        images.append((label, maps))
    return images


def measure(images, num_classes, chosen):
    metric = CoopIoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=[str(index) for index in range(num_classes)])
    for label, maps in images:
        sample = dict(
            gt_sem_seg=dict(data=label[None]),
            pred_sem_seg=dict(data=maps[chosen][None]),
            pred_outputs={name: label_map[None] for name, label_map in maps.items()},
            output=chosen,
            output_names=tuple(maps),
        )
        metric.process({}, [sample])
    return metric.compute_metrics(metric.results)


def counted(images, num_classes, output):
    """IoU of every class in percent, pixel by pixel; None for a class that occurs nowhere."""
    hits, unions = [0] * num_classes, [0] * num_classes
    for label, maps in images:
        for truth, prediction in zip(
            label.flatten().tolist(), maps[output].flatten().tolist(), strict=True
        ):
            if truth == IGNORED:
                continue
            for index in {truth, prediction}:
                unions[index] += 1
            hits[truth] += truth == prediction
    return [100 * hit / union if union else None for hit, union in zip(hits, unions, strict=True)]


def mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


@given(data=st.data())
def test_every_outputs_iou_is_a_count_of_pixels(data):
    num_classes = data.draw(st.integers(1, 6))
    outputs = ('top', 'bottom', 'ensemble')[: data.draw(st.integers(1, 3))]
    images = images_of(data, num_classes, outputs)
    chosen = data.draw(st.sampled_from(outputs))
    metrics = measure(images, num_classes, chosen)
    for name in outputs:
        expected = mean(counted(images, num_classes, name))
        assert metrics[f'{name}/mIoU'] == pytest.approx(expected, abs=0.006, nan_ok=True)
    assert metrics['mIoU'] == pytest.approx(metrics[f'{chosen}/mIoU'], nan_ok=True)


@given(data=st.data())
def test_other_numbers_for_the_classes_change_nothing(data):
    num_classes = data.draw(st.integers(2, 6))
    images = images_of(data, num_classes, ('top',))
    order = torch.tensor([*data.draw(st.permutations(range(num_classes))), *[IGNORED] * 256])
    renamed = [(order[label], dict(top=order[maps['top']])) for label, maps in images]
    before, after = (measure(each, num_classes, 'top') for each in (images, renamed))
    assert after == pytest.approx(before, nan_ok=True)


@given(data=st.data())
def test_the_cut_into_images_changes_nothing(data):
    """Pixels are counted over the whole data set, not averaged over images."""
    num_classes = data.draw(st.integers(1, 5))
    images = images_of(data, num_classes, ('top',))
    whole = [
        (
            torch.cat([label.flatten() for label, _ in images])[None],
            dict(top=torch.cat([maps['top'].flatten() for _, maps in images])[None]),
        )
    ]
    before, after = (measure(each, num_classes, 'top') for each in (images, whole))
    assert after == pytest.approx(before, nan_ok=True)


@given(data=st.data())
def test_a_perfect_prediction_has_100_percent(data):
    num_classes = data.draw(st.integers(1, 6))
    images = images_of(data, num_classes, ('top',))
    images = [(label, dict(top=label.clamp(max=num_classes - 1))) for label, _ in images]
    expected = 100 if any((label != IGNORED).any() for label, _ in images) else math.nan
    assert measure(images, num_classes, 'top')['mIoU'] == pytest.approx(expected, nan_ok=True)
