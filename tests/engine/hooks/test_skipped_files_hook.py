from __future__ import annotations

import atexit
import multiprocessing
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmseg.datasets import BaseSegDataset
from mmseg.structures import SegDataSample
from PIL import Image
from torch.utils.data import get_worker_info

from mmseg_coop.datasets import SkipFaultyDataset
from mmseg_coop.datasets.faults.skip_faulty_dataset import SKIPPED_KEY
from mmseg_coop.engine.hooks import SkippedFilesHook
from mmseg_coop.errors import DataError
from tests.engine import runs
from tests.engine.runs import Toy, assert_same, loader, logged, newest

COUNT, FAULTY, BATCH, ITERATIONS = 8, (2, 5), 2, 12


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Images of one colour each, two of which are empty files."""
    root = tmp_path_factory.mktemp('data')
    for folder in ('images', 'labels'):
        (root / folder).mkdir()
    for index in range(COUNT):
        image = np.full((4, 6, 3), 20 * index, np.uint8)
        Image.fromarray(image).save(root / f'images/{index}.png')
        Image.fromarray(image[..., 0] // 20).save(root / f'labels/{index}.png')
    for index in FAULTY:
        (root / f'images/{index}.png').write_bytes(b'')
    return root


def dataset(root, *, test_mode):
    inside = dict(
        type='BaseSegDataset',
        data_root=str(root),
        img_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=[str(index) for index in range(COUNT)]),
        serialize_data=False,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    )
    return dict(type='SkipFaultyDataset', test_mode=test_mode, dataset=inside)


class Bright(Toy):
    """Learns from the brightness of the images, and with it from which images it sees."""

    def __init__(self):
        super().__init__(1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'predict':
            return data_samples
        return super().forward([image.float().mean()[None] / 255 for image in inputs])


class Names(BaseMetric):
    """Numbers the images it was given."""

    def process(self, data_batch, data_samples):
        self.results += [int(Path(sample['img_path']).stem) for sample in data_samples]

    def compute_metrics(self, results):
        return {f'image_{index}': float(index in results) for index in range(COUNT)}


class End(Hook):
    priority = 'LOWEST'

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            raise KeyboardInterrupt


def train(root, folder, *, workers=0, end=None, val_test_mode=True, max_iters=ITERATIONS):
    torch.manual_seed(0)  # of the weights
    hook = SkippedFilesHook()
    validated = dataset(root, test_mode=val_test_mode)
    try:
        runs.train(
            folder,
            Bright(),
            data=loader(dataset(root, test_mode=False), BATCH, workers=workers),
            hooks=[hook, *([End(end)] if end else [])],
            checkpoint=dict(interval=3),
            train_cfg=dict(type='ExactIterBasedTrainLoop', max_iters=max_iters, val_interval=6),
            val_dataloader=loader(validated, 1, sampler='DefaultSampler', shuffle=False),
            val_cfg=dict(),
            val_evaluator=dict(type=Names),
            randomness=dict(seed=1),
        )
    finally:
        atexit.unregister(hook._summarize)
    return hook


@pytest.fixture(scope='module')
def whole(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    return folder, train(root, folder)


def test_each_file_is_named_once_and_all_draws_are_counted(root, whole):
    folder, hook = whole
    files = [str(root / f'images/{index}.png') for index in FAULTY]
    assert sorted(hook.draws) == files
    # Each image is drawn three times; those that take its place may be faulty as well.
    assert all(count >= 3 for count in hook.draws.values())
    text = logged(folder)
    for file in files:
        assert text.count(f'Skipped from now on: image {file} is empty (0 bytes)') == 1
    draws = sum(hook.draws.values())
    assert f'Faulty files skipped up to iteration 12: 2, in {draws} draws: {files[0]} (' in text


def test_every_evaluation_says_over_how_many_images_it_is(root, whole):
    text = logged(whole[0])
    for iteration in (6, 12):
        expected = (
            f'mIoU after iteration {iteration} is over 6 of 8 images; left out: '
            f'{root}/images/2.png, {root}/images/5.png'
        )
        assert text.count(expected) == 1
    lines = [line for line in text.splitlines() if 'Iter(val)' in line and 'image_0' in line]
    assert len(lines) == 2
    for line in lines:
        assert 'images_left_out: 2' in line
        for index in range(COUNT):
            assert f'image_{index}: {float(index not in FAULTY):.4f}' in line


@pytest.mark.parametrize(('end', 'workers'), [(4, 0), (7, 0), (7, 2)])
def test_a_resumed_run_skips_and_counts_as_the_uninterrupted(root, whole, tmp_path, end, workers):
    with pytest.raises(KeyboardInterrupt):
        train(root, tmp_path, end=end)
    hook = train(root, tmp_path, workers=workers)
    assert hook.draws == whole[1].draws
    ends = [newest(folder) for folder in (tmp_path, whole[0])]
    draws = [end['message_hub']['runtime_info'][SKIPPED_KEY] for end in ends]
    assert draws[0] == draws[1]
    assert_same(ends[0]['state_dict'], ends[1]['state_dict'])


def test_a_run_that_fails_still_reports(root, tmp_path, monkeypatch):
    registered = []
    monkeypatch.setattr(atexit, 'register', registered.append)
    with pytest.raises(KeyboardInterrupt):
        train(root, tmp_path, end=7)
    assert 'Faulty files skipped' not in logged(tmp_path)
    for report in registered:  # what the interpreter does when it ends
        if report.__name__ == '_summarize':
            report()
    assert re.search(r'Faulty files skipped up to iteration 6: \d, in', logged(tmp_path))


def test_a_run_without_faults_says_so(root, tmp_path, monkeypatch):
    monkeypatch.setattr(SkipFaultyDataset, '__getitem__', lambda self, index: self.dataset[0])
    hook = train(root, tmp_path, max_iters=2)
    assert hook.draws == {}
    assert 'No file was skipped in training.' in logged(tmp_path)


def test_an_evaluation_with_other_images_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match=r'another image in place of .*2.png; set test_mode=True'):
        train(root, tmp_path, val_test_mode=False)


def test_too_many_in_a_row_end_the_run_in_a_worker_as_well(root, tmp_path, monkeypatch):
    load = BaseSegDataset.__getitem__

    def fail(self, index):
        if get_worker_info() is None:  # as the evaluation's, which comes first
            return load(self, index)
        raise DataError(f'image {index}.png is empty', path=f'{index}.png')

    monkeypatch.setattr(BaseSegDataset, '__getitem__', fail)
    with pytest.raises(DataError) as caught:
        train(root, tmp_path, workers=2)
    assert re.fullmatch(r'10 samples in a row cannot .*png is empty.*', str(caught.value))


def test_views_of_test_time_augmentation_are_looked_into():
    sample = SegDataSample(metainfo={SKIPPED_KEY: [('a.png', 'image a.png is empty')]})
    batch = dict(inputs=[], data_samples=[[SegDataSample()], [sample]])
    with pytest.raises(ValueError, match=r'in place of a\.png'):
        SkippedFilesHook().after_test_iter(None, 0, data_batch=batch)


def one_of_two(rank, folder, root, answers):
    """A process: goes through the set of an evaluation, then counts what both draw."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    loaded = []
    load = BaseSegDataset.__getitem__
    BaseSegDataset.__getitem__ = lambda self, index: loaded.append(index) or load(self, index)
    evaluated = SkipFaultyDataset(dataset=dataset(root, test_mode=True)['dataset'], test_mode=True)
    hub = SimpleNamespace(runtime_info={})
    hub.update_info = lambda key, value: hub.runtime_info.update({key: value})
    runner = SimpleNamespace(logger=MMLogger(f'rank{rank}'), message_hub=hub, iter=0)
    hook = SkippedFilesHook()
    hook.before_train(runner)
    for iteration in range(3):
        fault = (f'{rank}.png', f'image {rank}.png is empty')
        sample = SegDataSample(metainfo={SKIPPED_KEY: [fault]} if rank or not iteration else {})
        hook.after_train_iter(runner, iteration, data_batch=dict(data_samples=[sample]))
    atexit.unregister(hook._summarize)
    answers.put((rank, sorted(evaluated.left_out), len(evaluated), hub.runtime_info, loaded))


def test_two_processes_share_the_work_and_the_counts(root, tmp_path):
    context = multiprocessing.get_context('fork')
    answers = context.Queue()
    processes = [
        context.Process(target=one_of_two, args=(rank, tmp_path, root, answers)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    found = sorted(answers.get() for _ in processes)
    for process in processes:
        process.join()
    expected = [str(root / f'images/{index}.png') for index in FAULTY]
    for rank, (number, left_out, length, info, loaded) in enumerate(found):
        assert number == rank
        assert left_out == expected
        assert length == COUNT - len(FAULTY)
        assert loaded == list(range(rank, COUNT, 2))
        assert info == {SKIPPED_KEY: {'0.png': 1, '1.png': 3}}
