from __future__ import annotations

import itertools
import os

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmseg_coop.engine import load_checkpoint_data
from mmseg_coop.errors import CheckpointError

NUMBERS = itertools.count()
SGD = dict(type='SGD', lr=0.01, momentum=0.9)
ADAM = dict(type='Adam', lr=0.01)
GROUPED = dict(paramwise_cfg=dict(custom_keys=dict(layer=dict(lr_mult=0.1))))
POLY = [dict(type='PolyLR', power=0.9, end=9, by_epoch=False)]


class Toy(BaseModel):
    def __init__(self, classes=10, more=False):
        super().__init__()
        self.layer = nn.Linear(20, classes)
        if more:
            self.more = nn.Linear(2, 2)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(inputs)).square().mean())


def train(
    folder, *, model=(), resume=False, load_from=None, max_iters=4, schedule=(), **optim_wrapper
):
    runner = Runner(
        model=Toy(**dict(model)),
        work_dir=str(folder),
        train_dataloader=dict(
            batch_size=2,
            dataset=[dict(inputs=torch.rand(20)) for _ in range(8)],
            sampler=dict(type='InfiniteSampler'),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(type='ExactIterBasedTrainLoop', max_iters=max_iters),
        optim_wrapper=dict(dict(optimizer=SGD), **optim_wrapper),
        param_scheduler=list(schedule),
        default_hooks=dict(
            checkpoint=dict(type='AtomicCheckpointHook', interval=1, by_epoch=False)
        ),
        default_scope='mmseg',
        experiment_name=f'resume_{next(NUMBERS)}',  # the log of each is its own
        load_from=load_from and str(load_from),
        resume=resume,
    )
    runner.train()
    return runner


@pytest.fixture(scope='module', autouse=True)
def _quick_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda _: None)
        yield


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    for name, options in dict(
        sgd={},
        adam=dict(optimizer=ADAM),
        grouped=GROUPED,
        accumulated=dict(accumulative_counts=4, max_iters=6),
    ).items():
        train(folder / name, **options)
    return folder


@pytest.mark.parametrize(
    ('run', 'options', 'said'),
    [
        (
            'sgd',
            dict(model=dict(classes=5)),
            'size mismatch for layer.weight: copying a param with shape torch.Size([10, 20]) from '
            'checkpoint, the shape in current model is torch.Size([5, 20])',
        ),
        (
            'sgd',
            dict(model=dict(more=True)),
            'Missing key(s) in state_dict: "more.weight", "more.bias"',
        ),
        ('sgd', GROUPED, 'loaded state dict has a different number of parameter groups'),
        ('grouped', {}, 'loaded state dict has a different number of parameter groups'),
        ('sgd', dict(optimizer=ADAM), "its optimizer is 'SGD', not 'Adam'"),
        ('adam', dict(optimizer=dict(type='AdamW')), "its optimizer is 'Adam', not 'AdamW'"),
        ('adam', {}, "its optimizer is 'Adam', not 'SGD'"),
    ],
)
def test_another_model_or_optimizer_is_refused(run, options, said, trained, tmp_path):
    file = trained / run / 'iter_2.pth'
    with pytest.raises(CheckpointError) as refused:
        train(tmp_path, resume=True, load_from=file, **options)
    assert str(refused.value) == (
        f'{file} does not fit the config: {said}. Resume it with the model and the optimizer that '
        f'it was trained with, or start a new run from its weights with load_from={file}, without '
        '--resume.'
    )
    assert not list(tmp_path.glob('*.pth'))
    assert train(tmp_path, load_from=file, **options).iter == 4  # what it says to do is possible


def test_a_refusal_is_printable_and_short_whatever_the_file_holds(trained, tmp_path):
    checkpoint = load_checkpoint_data(trained / 'sgd/iter_2.pth')
    checkpoint['state_dict'] |= {f'a\x1b[2J{number}': 0 for number in range(100)}
    torch.save(checkpoint, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='does not fit the config') as refused:
        train(tmp_path, resume=True, load_from=tmp_path / 'a.pth')
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


def test_a_parameter_less_is_refused(tmp_path):
    train(tmp_path, model=dict(more=True))
    with pytest.raises(CheckpointError, match=r'Unexpected key\(s\) in state_dict: "more.weight"'):
        train(tmp_path, resume=True, load_from=tmp_path / 'iter_2.pth')


@pytest.mark.parametrize(
    ('lacks', 'schedule', 'said'),
    [
        (['optimizer', 'param_schedulers'], POLY, 'no optimizer and no param_schedulers'),
        (['optimizer', 'param_schedulers'], [], 'no optimizer'),
        (['message_hub', 'meta', 'optimizer'], [], 'no meta and no message_hub and no optimizer'),
    ],
)
def test_without_its_optimizer_no_run_goes_on(lacks, schedule, said, trained, tmp_path):
    """As the best checkpoints, and published ones."""
    checkpoint = load_checkpoint_data(trained / 'sgd/iter_2.pth')
    for part in lacks:
        del checkpoint[part]
    torch.save(checkpoint, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError) as refused:
        train(tmp_path, resume=True, load_from=tmp_path / 'a.pth', schedule=schedule)
    assert str(refused.value).startswith(f'{tmp_path}/a.pth holds {said}, so no run can go on')
    assert 'Resume from a numbered checkpoint, or start a new run' in str(refused.value)


@pytest.mark.parametrize(
    ('run', 'file', 'counts', 'held', 'multiple'),
    [
        ('sgd', 'iter_2.pth', 4, 'no such gradients', 4),  # as mmengine's hook writes them
        ('accumulated', 'iter_2.pth', 1, 'gradients for accumulative_counts=4', 4),
        ('accumulated', 'iter_2.pth', 2, 'gradients for accumulative_counts=4', 4),
        ('accumulated', 'iter_2.pth', 3, 'gradients for accumulative_counts=4', 12),
    ],
)
def test_gradients_of_another_accumulation(run, file, counts, held, multiple, trained, tmp_path):
    path = trained / run / file
    with pytest.raises(CheckpointError) as refused:
        train(tmp_path, resume=True, load_from=path, accumulative_counts=counts)
    assert str(refused.value) == (
        f'optim_wrapper.accumulative_counts={counts} does not fit {path}: iteration 2 is between '
        f'two steps of the optimizer, and it holds {held}. Resume with the number it was trained '
        f'with, or at a multiple of {multiple}.'
    )


def test_between_two_steps_nothing_is_missing(trained, tmp_path):
    assert (
        train(tmp_path, resume=True, load_from=trained / 'accumulated/iter_4.pth', max_iters=5).iter
        == 5
    )
    # The last iteration makes a step of what there is: a run that has ended has nothing left.
    end = trained / 'accumulated/iter_6.pth'
    assert 'accumulation' not in load_checkpoint_data(end)
    assert train(tmp_path, resume=True, load_from=end, accumulative_counts=4, max_iters=6).iter == 6


def test_gradients_are_in_numbered_checkpoints_between_steps(trained):
    for iteration in range(1, 7):
        checkpoint = load_checkpoint_data(trained / f'accumulated/iter_{iteration}.pth')
        held = checkpoint.get('accumulation')
        if iteration in (4, 6):
            assert held is None
        else:
            assert held['counts'] == 4
            assert set(held['gradients']) == {'layer.weight', 'layer.bias'}
