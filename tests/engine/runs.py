"""Trainings of a few iterations with mmengine's runner, for all tests of the engine."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
SGD = dict(type='SGD', lr=0.01, momentum=0.9)
_NUMBERS = itertools.count()


class Toy(BaseModel):
    """A linear layer; a subclass changes the loss of a call, which are counted from 1."""

    def __init__(self, inputs=20, outputs=10):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.calls = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.calls += 1
        output = self.layer(torch.stack(inputs)).float()
        return dict(loss=self.change(output, output.square().mean()))

    def change(self, output, loss):
        return loss


class Act(Hook):
    """Calls a function after the step of an iteration, before its checkpoint is written."""

    priority = 'HIGH'

    def __init__(self, act, iteration=None):
        self.act, self.iteration = act, iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.iteration in (None, runner.iter + 1):
            self.act(runner)


def loader(dataset, batch_size=2, *, workers=0, sampler='InfiniteSampler', **options):
    return dict(
        batch_size=batch_size,
        dataset=dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        sampler=dict(type=sampler, **options),
        collate_fn=dict(type='pseudo_collate'),
    )


def train(
    folder, model=None, *, data=None, max_iters=4, hooks=(), checkpoint=(), optim=(), **options
):
    """Train; a folder with checkpoints is resumed, and options are those of the runner."""
    model = Toy() if model is None else model
    if data is None:
        data = [dict(inputs=torch.rand(model.layer.in_features)) for _ in range(8)]
    hook = dict(type='AtomicCheckpointHook', interval=1, by_epoch=False, **dict(checkpoint))
    options = dict(
        dict(
            train_dataloader=data if isinstance(data, dict) else loader(data),
            train_cfg=dict(type='ExactIterBasedTrainLoop', max_iters=max_iters),
            optim_wrapper=dict(dict(optimizer=SGD), **dict(optim)),
            default_hooks=dict(checkpoint=hook, logger=dict(type='LoggerHook', interval=1)),
            log_processor=dict(by_epoch=False),
            default_scope='mmseg',
            experiment_name=f'run_{next(_NUMBERS)}',  # the log of each is its own
            resume=True,
        ),
        **options,
    )
    runner = Runner(model=model, work_dir=str(folder), custom_hooks=list(hooks), **options)
    runner.train()
    return runner


def files(folder):
    """Names of the files, but for the config that each run writes."""
    return sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix != '.py')


def logged(folder):
    return '\n'.join(path.read_text() for path in sorted(folder.glob('*/*.log')))
