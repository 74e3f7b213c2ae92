from __future__ import annotations

import pytest
import torch
from torch import nn

from mmseg_coop.engine import load_checkpoint_data
from mmseg_coop.errors import CheckpointError
from tests.engine.runs import Toy, files, train

ADAM, ADAMW = dict(optimizer=dict(type='Adam', lr=0.01)), dict(optimizer=dict(type='AdamW'))
GROUPED = dict(paramwise_cfg=dict(custom_keys=dict(layer=dict(lr_mult=0.1))))
POLY = [dict(type='PolyLR', power=0.9, end=9, by_epoch=False)]


class Longer(Toy):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(2, 2)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    train(folder / 'sgd')
    train(folder / 'longer', Longer())
    train(folder / 'adam', optim=ADAM)
    train(folder / 'grouped', optim=GROUPED)
    train(folder / 'accumulated', optim=dict(accumulative_counts=4), max_iters=6)
    return folder


def resume(file, folder, *model, **options):
    return train(folder, *model, load_from=str(file), **options)


@pytest.mark.parametrize(
    ('run', 'model', 'optim', 'said'),
    [
        (
            *('sgd', lambda: Toy(20, 5), {}),
            'size mismatch for layer.weight ([10, 20] in place of [5, 20]), layer.bias ([10] in '
            'place of [5])',
        ),
        ('sgd', Longer, {}, 'it lacks more.weight, more.bias'),
        ('longer', Toy, {}, 'it holds the unknown more.weight, more.bias'),
        ('sgd', Toy, GROUPED, 'loaded state dict has a different number of parameter groups'),
        ('grouped', Toy, {}, 'loaded state dict has a different number of parameter groups'),
        ('sgd', Toy, ADAM, "its optimizer is 'SGD', not 'Adam'"),
        ('adam', Toy, ADAMW, "its optimizer is 'Adam', not 'AdamW'"),
        ('adam', Toy, {}, "its optimizer is 'Adam', not 'SGD'"),
    ],
)
def test_another_model_or_optimizer_is_refused(run, model, optim, said, trained, tmp_path):
    file = trained / run / 'iter_2.pth'
    with pytest.raises(CheckpointError) as refused:
        resume(file, tmp_path, model(), optim=optim)
    assert str(refused.value) == (
        f'{file} does not fit the config: {said}. Resume it with the model and the optimizer that '
        f'it was trained with, or start a new run from its weights with load_from={file}, without '
        '--resume.'
    )
    assert not files(tmp_path)
    # What it says to do is possible.
    assert resume(file, tmp_path, model(), optim=optim, resume=False).iter == 4


def test_a_refusal_is_printable_and_short_whatever_the_file_holds(trained, tmp_path):
    checkpoint = load_checkpoint_data(trained / 'sgd/iter_2.pth')
    checkpoint['state_dict'] |= {f'a\x1b[2J{number}': 0 for number in range(100)}
    torch.save(checkpoint, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='does not fit the config') as refused:
        resume(tmp_path / 'a.pth', tmp_path)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ('lacks', 'schedule', 'said'),
    [
        (['optimizer', 'param_schedulers'], POLY, 'no optimizer and no param_schedulers'),
        (['optimizer', 'param_schedulers'], [], 'no optimizer'),
        (['message_hub', 'meta', 'optimizer'], [], 'no meta and no message_hub and no optimizer'),
    ],
)
def test_without_its_optimizer_no_run_is_resumed(lacks, schedule, said, trained, tmp_path):
    """As the best checkpoints, and published ones."""
    checkpoint = load_checkpoint_data(trained / 'sgd/iter_2.pth')
    for part in lacks:
        checkpoint.pop(part, None)
    torch.save(checkpoint, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError) as refused:
        resume(tmp_path / 'a.pth', tmp_path, param_scheduler=schedule)
    assert str(refused.value).startswith(f'{tmp_path}/a.pth holds {said}, so no run can go on')
    assert 'Resume from a numbered checkpoint, or start a new run' in str(refused.value)


HELD = 'gradients for accumulative_counts=4'


@pytest.mark.parametrize(
    ('run', 'counts', 'held', 'multiple'),
    [
        ('sgd', 4, 'no such gradients', 4),  # as mmengine's hook writes them
        ('accumulated', 1, HELD, 4),
        ('accumulated', 2, HELD, 4),
        ('accumulated', 3, HELD, 12),
    ],
)
def test_gradients_of_another_accumulation(run, counts, held, multiple, trained, tmp_path):
    file = trained / run / 'iter_2.pth'
    with pytest.raises(CheckpointError) as refused:
        resume(file, tmp_path, optim=dict(accumulative_counts=counts))
    assert str(refused.value) == (
        f'optim_wrapper.accumulative_counts={counts} does not fit {file}: iteration 2 is between '
        f'two steps of the optimizer, and it holds {held}. Resume with the number it was trained '
        f'with, or at a multiple of {multiple}.'
    )


def test_only_between_two_steps_a_checkpoint_holds_gradients(trained, tmp_path):
    run = trained / 'accumulated'
    for iteration in range(1, 7):
        held = load_checkpoint_data(run / f'iter_{iteration}.pth').get('accumulation')
        if iteration in (4, 6):  # the last iteration makes a step of what there is
            assert held is None
        else:
            assert held['counts'] == 4
            assert set(held['gradients']) == {'layer.weight', 'layer.bias'}
    assert resume(run / 'iter_4.pth', tmp_path, max_iters=5).iter == 5
    same = dict(optim=dict(accumulative_counts=4), max_iters=6)
    assert resume(run / 'iter_6.pth', tmp_path, **same).iter == 6
