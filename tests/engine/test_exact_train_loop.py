from __future__ import annotations

import itertools
import math
import os
import random
from pathlib import Path

import mmengine.runner
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmseg.registry import LOOPS
from torch import nn

from mmseg_coop.engine import ExactIterBasedTrainLoop, load_checkpoint_data
from mmseg_coop.engine.hooks.checkpoint_hook import changes_of_config

IMAGES, BATCH, ITERATIONS = 7, 2, 12
NUMBERS = itertools.count()


class Noisy(torch.utils.data.Dataset):
    """Samples with the noise of all three generators; writes down what it reads."""

    def __init__(self, log, size=IMAGES):
        self.metainfo = dict(classes=('a',))
        self.log = log
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        assert type(index) is int
        with open(self.log, 'a') as file:
            file.write(f'{index}\n')
        noise = [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002
        return dict(inputs=torch.tensor([index / IMAGES, *noise]))


class Dropped(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16, eps=1), nn.Dropout(0.5), nn.Linear(16, 1)
        )

    def forward(self, inputs, mode='tensor'):
        output = self.layers(torch.stack(inputs))
        return dict(loss=(output - 1).square().mean()) if mode == 'loss' else list(output)


class Level(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(sample) for sample in data_samples]

    def compute_metrics(self, results):
        np.random.rand(3)  # noqa: NPY002  # an evaluation may draw numbers as well
        torch.rand(3)
        return dict(level=-abs(float(np.mean(results)) - 1))


class Look(Hook):
    """Collects the samples' noise and some of the iteration's."""

    def __init__(self, noise):
        self.noise = noise

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.noise += [sample[1:] for sample in data_batch['inputs']]
        self.noise.append(torch.rand(3))


class Kill(Hook):
    """Ends the run at a moment: before or after an iteration's checkpoint, or in evaluation."""

    priority = 'LOWEST'

    def __init__(self, moment, iteration):
        self.moment, self.iteration = moment, iteration

    def _end(self, moment, iteration):
        if (moment, iteration) == (self.moment, self.iteration):
            raise KeyboardInterrupt

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._end('before', runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._end('after', runner.iter + 1)

    def before_val_epoch(self, runner):
        self._end('evaluation', runner.iter)


def train(folder, *, workers=0, kill=None, look=None, seed=3, accumulate=1):
    torch.manual_seed(0)  # of the weights
    loader = dict(
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=dict(type='pseudo_collate'),
    )
    runner = Runner(
        model=Dropped(),
        work_dir=str(folder),
        train_dataloader=dict(
            batch_size=BATCH,
            dataset=Noisy(str(folder) + '.read'),
            sampler=dict(type='InfiniteSampler'),
            **loader,
        ),
        train_cfg=dict(type='ExactIterBasedTrainLoop', max_iters=ITERATIONS, val_interval=4),
        optim_wrapper=dict(
            accumulative_counts=accumulate, optimizer=dict(type='SGD', lr=0.01, momentum=0.9)
        ),
        param_scheduler=[dict(type='PolyLR', power=0.9, end=20, by_epoch=False)],
        val_dataloader=dict(
            batch_size=2,
            dataset=Noisy('/dev/null', 3),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        val_cfg=dict(),
        val_evaluator=dict(type=Level),
        default_hooks=dict(
            checkpoint=dict(
                type='AtomicCheckpointHook',
                interval=2,
                by_epoch=False,
                save_best='level',
                rule='greater',
            ),
            logger=dict(type='LoggerHook', interval=3),
        ),
        custom_hooks=[
            *([Kill(*kill)] if kill else []),
            *([Look(look)] if look is not None else []),
        ],
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=seed),
        default_scope='mmseg',
        experiment_name=f'run_{next(NUMBERS)}',  # the log of each is its own
        resume=True,
    )
    runner.train()
    return runner


def newest(folder):
    return load_checkpoint_data((folder / 'last_checkpoint').read_text(), 'cpu')


def assert_same(a, b, place='checkpoint'):
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert set(a) == set(b), place
        for key in a:
            assert_same(a[key], b[key], f'{place}[{key!r}]')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), place
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f'{place}[{number}]')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    elif isinstance(a, HistoryBuffer):
        for x, y in zip(a.data, b.data, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=place)
    else:
        assert a == b, place


def comparable(checkpoint):
    """Weights, optimizer, scheduler and log, without what is of the clock or the folder."""
    scalars = {
        key: value
        for key, value in checkpoint['message_hub']['log_scalars'].items()
        if not key.endswith('time')
    }
    info = checkpoint['message_hub']['runtime_info']
    parts = ('state_dict', 'optimizer', 'param_schedulers')
    return dict(
        {part: checkpoint[part] for part in parts},
        log=scalars,
        best=(info['best_score'], Path(info['best_ckpt']).name),
        iteration=checkpoint['meta']['iter'],
    )


@pytest.fixture(scope='module', autouse=True)
def _quick_disk():
    """These runs end by an exception: nothing has to be on the disk before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda _: None)
        yield


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole') / 'run'
    train(folder)
    return folder


KILLS = [
    [('before', 5)],  # some iterations after a checkpoint
    [('after', 6)],  # just after a checkpoint
    [('evaluation', 4)],  # between a checkpoint and the evaluation that is due then
    [('evaluation', 12)],  # the last one
    [('before', 1), ('before', 3), ('evaluation', 8), ('after', 9), ('before', 11)],
]


@pytest.mark.parametrize('kills', KILLS, ids=lambda kills: '-'.join(f'{m}{i}' for m, i in kills))
def test_a_resumed_run_ends_as_the_uninterrupted(kills, uninterrupted, tmp_path):
    folder = tmp_path / 'run'
    for kill in kills:
        with pytest.raises(KeyboardInterrupt):
            train(folder, kill=kill)
    train(folder)
    assert_same(comparable(newest(folder)), comparable(newest(uninterrupted)))
    best, expected = (sorted(f.name for f in d.glob('best*')) for d in (folder, uninterrupted))
    assert best == expected


@pytest.mark.parametrize('kill', [('before', 7), ('after', 8), ('evaluation', 4), ('after', 10)])
def test_within_an_accumulation_too(kill, tmp_path, capfd):
    """Steps follow iterations 5, 10 and, with what is left, 12."""
    train(tmp_path / 'whole', accumulate=5)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / 'run', accumulate=5, kill=kill)
    resumed = newest(tmp_path / 'run')
    assert ('accumulation' in resumed) == (resumed['meta']['iter'] % 5 > 0)
    train(tmp_path / 'run', accumulate=5)
    whole, run = newest(tmp_path / 'whole'), newest(tmp_path / 'run')
    assert_same(comparable(run), comparable(whole))
    assert 'accumulation' not in run
    assert 'gradient of some iterations is lost' not in ''.join(capfd.readouterr())


def test_without_exactness_the_runs_would_differ(uninterrupted, tmp_path):
    """The comparison notices another seed."""
    train(tmp_path / 'run', seed=4)
    with pytest.raises(AssertionError):
        assert_same(comparable(newest(tmp_path / 'run')), comparable(newest(uninterrupted)))


def test_seen_images_are_not_read_again(uninterrupted, tmp_path):
    folder, log = tmp_path / 'run', Path(f'{tmp_path / "run"}.read')
    with pytest.raises(KeyboardInterrupt):
        train(folder, kill=('after', 8))
    assert len(log.read_text().split()) == 8 * BATCH
    train(folder)
    assert log.read_text() == Path(f'{uninterrupted}.read').read_text()


def test_with_workers_it_is_the_same(uninterrupted, tmp_path):
    folder, log = tmp_path / 'run', Path(f'{tmp_path / "run"}.read')
    with pytest.raises(KeyboardInterrupt):
        train(folder, kill=('after', 8), workers=2)
    log.unlink()
    train(folder, workers=2)
    assert_same(comparable(newest(folder)), comparable(newest(uninterrupted)))
    ahead = 2 * 2  # batches that two workers prepare in advance
    assert len(log.read_text().split()) <= (ITERATIONS - 8 + ahead) * BATCH


def test_a_seed_chosen_by_chance_is_that_of_the_checkpoint(tmp_path):
    folder = tmp_path / 'run'
    with pytest.raises(KeyboardInterrupt):
        train(folder, kill=('before', 8), seed=None)
    seed = newest(folder)['meta']['seed']
    train(folder, seed=None)
    train(tmp_path / 'whole', seed=seed)
    assert_same(comparable(newest(folder)), comparable(newest(tmp_path / 'whole')))


def test_every_image_comes_once_in_each_round(uninterrupted):
    read = [int(line) for line in Path(f'{uninterrupted}.read').read_text().split()]
    for start in range(0, ITERATIONS * BATCH // IMAGES * IMAGES, IMAGES):
        assert sorted(read[start : start + IMAGES]) == list(range(IMAGES))


def test_noise_differs_between_rounds_and_iterations(tmp_path):
    noise = []
    train(tmp_path / 'run', look=noise)
    numbers = torch.cat(noise)
    assert len(numbers) == ITERATIONS * (BATCH * 3 + 3)
    assert len(numbers.unique()) == len(numbers)


def test_other_configs_keep_mmengines_loop():
    assert LOOPS.get('ExactIterBasedTrainLoop') is ExactIterBasedTrainLoop
    assert LOOPS.get('IterBasedTrainLoop') is mmengine.runner.IterBasedTrainLoop


def test_another_sampler_is_read_again_and_said(tmp_path, capfd):
    folder = tmp_path / 'run'
    loader = dict(
        batch_size=BATCH,
        dataset=Noisy(f'{folder}.read', 64),
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'),
        num_workers=0,
    )

    def run(iterations):
        runner = Runner(
            model=Dropped(),
            work_dir=str(folder),
            train_dataloader=loader,
            train_cfg=dict(type='ExactIterBasedTrainLoop', max_iters=iterations),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(
                checkpoint=dict(type='AtomicCheckpointHook', interval=1, by_epoch=False)
            ),
            default_scope='mmseg',
            experiment_name=f'other_{iterations}',
            resume=True,
        )
        runner.train()

    run(2)
    run(3)
    assert 'Reading the 2 batches again' in ''.join(capfd.readouterr())
    assert math.isclose(len(Path(f'{folder}.read').read_text().split()), 5 * BATCH)


def test_changes_of_the_config_are_listed():
    old = Config(
        dict(
            model=dict(num_classes=11, sizes=(1, 2)),
            train_dataloader=dict(batch_size=8),
            param_scheduler=[dict(type='PolyLR', end=200)],
            work_dir='a',
        )
    )
    new = Config(
        dict(
            model=dict(num_classes=12, sizes=[1, 2], extra=True),
            train_dataloader=dict(batch_size=4),
            param_scheduler=[dict(type='PolyLR', end=100)],
            work_dir='b',
        )
    )
    assert changes_of_config(old, old) == []
    assert changes_of_config(old, new) == [
        "model.extra: '(nothing)' in the checkpoint, True now",
        'model.num_classes: 11 in the checkpoint, 12 now',
        'param_scheduler.0.end: 200 in the checkpoint, 100 now',
        'train_dataloader.batch_size: 8 in the checkpoint, 4 now',
    ]
