from __future__ import annotations

import random
from pathlib import Path

import mmengine.runner
import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmseg.registry import LOOPS
from torch import nn

from mmseg_coop.engine import ExactIterBasedTrainLoop
from tests.engine import runs
from tests.engine.runs import Toy, assert_same, comparable, loader, logged, newest

IMAGES, BATCH, ITERATIONS = 7, 2, 12


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


class Dropped(Toy):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16, eps=1), nn.Dropout(0.5), nn.Linear(16, 1)
        )

    def forward(self, inputs, data_samples=None, mode='tensor'):
        output = self.layer(torch.stack(inputs))
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


def train(folder, *, log=None, workers=0, kill=None, look=None, seed=3, accumulate=1):
    torch.manual_seed(0)  # of the weights
    hooks = [Kill(*kill)] if kill else []
    hooks += [Look(look)] if look is not None else []
    runs.train(
        folder,
        Dropped(),
        data=loader(Noisy(log or f'{folder}.read'), BATCH, workers=workers),
        max_iters=ITERATIONS,
        hooks=hooks,
        checkpoint=dict(interval=2, save_best='level', rule='greater'),
        optim=dict(accumulative_counts=accumulate),
        train_cfg=dict(type='ExactIterBasedTrainLoop', max_iters=ITERATIONS, val_interval=4),
        param_scheduler=[dict(type='PolyLR', power=0.9, end=20, by_epoch=False)],
        val_dataloader=loader(Noisy('/dev/null', 3), sampler='DefaultSampler', shuffle=False),
        val_cfg=dict(),
        val_evaluator=dict(type=Level),
        randomness=dict(seed=seed),
    )


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
def test_within_an_accumulation_too(kill, tmp_path):
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
    assert 'gradient of some iterations is lost' not in logged(tmp_path / 'run')


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
    folder, log = tmp_path / 'run', tmp_path / 'resumed.read'
    with pytest.raises(KeyboardInterrupt):
        train(folder, kill=('after', 8), workers=2)  # its workers may still read, into its log
    train(folder, workers=2, log=log)
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


def test_another_sampler_is_read_again_and_said(tmp_path):
    folder, log = tmp_path / 'run', tmp_path / 'read'
    data = loader(Noisy(str(log), 64), BATCH, sampler='DefaultSampler', shuffle=True)
    for iterations in (2, 3):
        runs.train(folder, Dropped(), data=data, max_iters=iterations)
    assert 'Reading the 2 batches again' in logged(folder)
    assert len(log.read_text().split()) == 5 * BATCH
