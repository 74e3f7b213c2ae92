"""Trainings of a few iterations with mmengine's runner, for all tests of the engine."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmseg_coop.engine import load_checkpoint_data

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
    hook = {**dict(type='AtomicCheckpointHook', interval=1, by_epoch=False), **dict(checkpoint)}
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


def newest(folder):
    return load_checkpoint_data((folder / 'last_checkpoint').read_text(), 'cpu')


def assert_same(a, b, place='it'):
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert list(a) == list(b), place
        for key in a:
            assert_same(a[key], b[key], f'{place}[{key!r}]')
        assert_same(getattr(a, '_metadata', None), getattr(b, '_metadata', None), place)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), place
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f'{place}[{number}]')
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, place
        assert torch.equal(a, b), place
        assert a.requires_grad == b.requires_grad, place
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, place
        np.testing.assert_array_equal(a, b, err_msg=place)
    elif isinstance(a, HistoryBuffer):
        assert_same([*a.data, a.max_length], [*b.data, b.max_length], place)
        for name in ('min', 'max', 'mean', 'current'):
            np.testing.assert_equal(a.statistics(name), b.statistics(name), err_msg=place)
    else:
        assert a == b, place


def comparable(checkpoint):
    """Weights, optimizer, scheduler and log, without what is of the clock or the folder."""
    hub = checkpoint['message_hub']
    log = {key: hub['log_scalars'][key] for key in sorted(hub['log_scalars'])}
    best = hub['runtime_info'].get('best_score'), hub['runtime_info'].get('best_ckpt')
    return dict(
        {part: checkpoint[part] for part in ('state_dict', 'optimizer', 'param_schedulers')},
        log={key: value for key, value in log.items() if not key.endswith('time')},
        best=(best[0], best[1] and Path(best[1]).name),
        iteration=checkpoint['meta']['iter'],
    )
