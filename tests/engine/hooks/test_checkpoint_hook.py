from __future__ import annotations

import errno
import os
import random
import resource
import signal
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import mmengine.hooks
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import nn

from mmseg_coop.engine import load_checkpoint_data
from mmseg_coop.engine.hooks import AtomicCheckpointHook
from mmseg_coop.engine.hooks.checkpoint_hook import changes_of_config, write_atomically
from mmseg_coop.engine.numeric_fault import non_finite
from mmseg_coop.errors import NumericError
from tests.engine.runs import SGD, Act, Toy, assert_same, comparable, files, newest, train
from tests.processes import start


def report(runner, metrics):
    """Stand in for an evaluation before the checkpoint of its iteration is written."""
    hook = next(hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook))
    hook.after_val_epoch(runner, dict(metrics))


def evaluate(*metrics):
    return Act(lambda runner: report(runner, metrics[runner.iter]))


def scores(*values):
    return evaluate(*(dict(mIoU=value) for value in values))


BEST = dict(save_best='mIoU', rule='greater')


def test_it_writes_the_files_of_mmengines_hook(tmp_path):
    # Importing the package leaves the hook of other configs alone.
    assert HOOKS.get('CheckpointHook') is mmengine.hooks.CheckpointHook
    runner = train(tmp_path)
    assert any(type(hook) is AtomicCheckpointHook for hook in runner.hooks)
    expected = ['iter_1.pth', 'iter_2.pth', 'iter_3.pth', 'iter_4.pth', 'last_checkpoint']
    assert files(tmp_path) == expected
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_4.pth')


# The metrics start with an iteration 0: they come before the checkpoint of the same iteration.
@pytest.mark.parametrize(
    ('checkpoint', 'hooks', 'expected'),
    [
        (dict(max_keep_ckpts=1), [], '+1 +last +2 +last -1 +3 +last -2 +4 +last -3'),
        (dict(max_keep_ckpts=2), [], '+1 +last +2 +last +3 +last -1 +4 +last -2'),
        (
            BEST,
            [scores(0.3, 0.2, 0.5, 0.5)],
            '+best_mIoU_0 +1 +last +2 +last +best_mIoU_2 +2 +last -best_mIoU_0 +3 +last +4 +last',
        ),
    ],
)
def test_a_file_goes_only_when_its_successor_is_there(
    checkpoint, hooks, expected, tmp_path, monkeypatch
):
    events = []
    replace, remove = os.replace, os.remove
    monkeypatch.setattr(os, 'replace', lambda a, b: (events.append(f'+{b}'), replace(a, b)))
    monkeypatch.setattr(os, 'remove', lambda a: (events.append(f'-{a}'), remove(a)))
    train(tmp_path, hooks=hooks, checkpoint=checkpoint)
    seen = [
        event[0] + Path(event[1:]).stem.replace('iter_', '').replace('_checkpoint', '')
        for event in events
    ]
    assert ' '.join(seen) == expected


def test_several_kinds_of_best(tmp_path):
    metrics = [(3.0, 0.1), (2.0, 0.1), (2.5, 0.2), (2.5, 0.1)]
    hook = evaluate(*(dict(loss=loss, mIoU=score) for loss, score in metrics))
    train(tmp_path, hooks=[hook], checkpoint=dict(save_best=['loss', 'mIoU'], max_keep_ckpts=1))
    assert files(tmp_path) == [
        'best_loss_iter_1.pth', 'best_mIoU_iter_2.pth', 'iter_4.pth', 'last_checkpoint',
    ]  # fmt: skip


# Whose files are deleted
# -----------------------


def test_the_best_of_another_run_stays(tmp_path):
    """A run that is resumed in another folder has a better one, and keeps fewer checkpoints."""
    old, new = tmp_path / 'old', tmp_path / 'new'
    train(old, max_iters=2, hooks=[scores(0.3, 0.2)], checkpoint=dict(BEST, max_keep_ckpts=2))
    before = files(old)
    assert before == ['best_mIoU_iter_0.pth', 'iter_1.pth', 'iter_2.pth', 'last_checkpoint']
    train(
        new,
        load_from=str(old / 'iter_2.pth'),
        hooks=[scores(0.3, 0.2, 0.4, 0.5)],
        checkpoint=dict(BEST, max_keep_ckpts=1),
    )
    assert files(old) == before
    # In its own folder only the new best one is left.
    assert files(new) == ['best_mIoU_iter_3.pth', 'iter_4.pth', 'last_checkpoint']


class Claim(Hook):
    """Makes a run believe what a checkpoint that it resumes could say."""

    def __init__(self, **info):
        self.info = info

    def before_run(self, runner):
        for key, value in self.info.items():
            runner.message_hub.update_info(key, value)


@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize(
    ('claimed', 'deleted'),
    [
        ('run/best_old.pth', True),
        ('link/best_old.pth', True),  # the same folder by another name
        ('other/best_old.pth', False),
        ('run/../other/best_old.pth', False),
        ('run/sub/best_old.pth', False),
        ('run/iou.jsonl', False),
        ('run/best_folder', False),
        ('other/best_folder', False),
        ('run', False),
        ('run/..', False),
        ('', False),
    ],
)
def test_only_best_checkpoints_of_the_own_folder_are_deleted(claimed, deleted, several, tmp_path):
    for folder in ('run', 'other', 'run/sub'):
        for name in ('best_old.pth', 'iou.jsonl', 'best_folder/file'):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / 'link').symlink_to('run')
    target = (tmp_path / claimed).resolve()
    before = {path for path in tmp_path.rglob('*') if path.is_file()}
    best = dict(save_best=['mIoU', 'acc'] if several else 'mIoU', rule='greater')
    name = 'best_ckpt_mIoU' if several else 'best_ckpt'
    claim = Claim(**{name: f'{tmp_path}/{claimed}' if claimed else ''})
    hooks = [claim, evaluate(dict(mIoU=0.5, acc=0.5))]
    train(tmp_path / 'run', max_iters=1, hooks=hooks, checkpoint=best, resume=False)
    assert (tmp_path / 'run/best_mIoU_iter_0.pth').is_file()
    gone = {path for path in before if not path.exists()}
    assert gone == ({target} if deleted else set())


def test_numbers_of_old_checkpoints_are_numbers(tmp_path):
    (tmp_path / 'victim.pth').touch()
    (tmp_path / 'run/iter_').mkdir(parents=True)  # so that the path exists
    (tmp_path / 'run/iter_7.pth').touch()
    claim = Claim(keep_ckpt_ids=['/../../victim', 7])
    train(tmp_path / 'run', max_iters=1, hooks=[claim], checkpoint=dict(max_keep_ckpts=1))
    assert (tmp_path / 'victim.pth').exists()
    assert files(tmp_path / 'run') == ['iter_1.pth', 'last_checkpoint']


# Disks that fail
# ---------------


@pytest.fixture
def limit():
    """Limit the size of files, and lift the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size=soft):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield limit
    limit()


def test_a_limit_on_the_size_of_files_leaves_the_previous_checkpoint(limit, tmp_path):
    run, keep = tmp_path / 'run', dict(checkpoint=dict(max_keep_ckpts=1))
    with pytest.raises(OSError, match='earlier checkpoints are intact') as failed:
        train(run, Toy(1000), hooks=[Act(lambda _: limit(30_000), 3)], **keep)
    limit()
    assert failed.value.errno == errno.EFBIG
    assert failed.value.filename == str(run / 'iter_3.pth')
    assert files(run) == ['iter_2.pth', 'last_checkpoint']
    assert (run / 'last_checkpoint').read_text() == str(run / 'iter_2.pth')
    assert load_checkpoint_data(run / 'iter_2.pth')['meta']['iter'] == 2
    assert train(run, Toy(1000), **keep).iter == 4  # resumed from there
    assert files(run) == ['iter_4.pth', 'last_checkpoint']


@pytest.mark.parametrize('fails_at', ['write', 'fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file(fails_at, limit, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / 'a.pth'
    write_atomically(b'old', path)
    if fails_at == 'write':
        limit(5)
    else:
        monkeypatch.setattr(os, fails_at, full)
    with pytest.raises(OSError, match='not written') as failed:
        write_atomically(b'new and longer', path)
    limit()
    assert failed.value.filename == str(path)
    assert path.read_bytes() == b'old'
    assert files(tmp_path) == ['a.pth']


@pytest.mark.parametrize('refuses', ['fsync', 'open'])
def test_a_folder_that_cannot_be_synced_is_no_fault(refuses, tmp_path, monkeypatch):
    """Many shares refuse to sync one (EINVAL), and Windows to open one (EACCES)."""
    original, refused = getattr(os, refuses), []

    def refuse(what, *more):
        if stat.S_ISDIR(os.stat(what).st_mode):
            refused.append(what)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return original(what, *more)

    (tmp_path / '.a.pth.part').write_bytes(b'what a kill has left')
    with monkeypatch.context() as share:
        share.setattr(os, refuses, refuse)
        write_atomically(b'whole', tmp_path / 'a.pth')
    assert len(refused) == 1
    assert (tmp_path / 'a.pth').read_bytes() == b'whole'
    assert files(tmp_path) == ['a.pth']


# Changes of the config
# ---------------------

OLD = Config(
    dict(
        model=dict(num_classes=11, sizes=(1, 2)),
        train_dataloader=dict(batch_size=8),
        param_scheduler=[dict(type='PolyLR', end=200)],
        work_dir='a',
        randomness=dict(seed=1),
    )
)
NEW = Config(
    dict(
        model=dict(num_classes=12, sizes=[1, 2], extra=True),
        train_dataloader=dict(batch_size=4),
        param_scheduler=[dict(type='PolyLR', end=100)],
        work_dir='b',
        randomness=None,
    )
)


def test_a_changed_config_is_said_before_training_starts():
    said = []
    runner = SimpleNamespace(
        **dict(model=nn.Identity(), optim_wrapper=None, param_schedulers=None, cfg=NEW),
        _resume=True,
        _load_from='old.pth',
        logger=SimpleNamespace(warning=said.append),
    )
    hook = AtomicCheckpointHook(interval=1)
    checkpoint = dict(meta=dict(cfg=OLD.pretty_text), message_hub={}, optimizer={})
    hook.after_load_checkpoint(runner, checkpoint)
    expected = [
        "model.extra: '(nothing)' then, True now",
        'model.num_classes: 11 then, 12 now',
        'param_scheduler.0.end: 200 then, 100 now',
        'train_dataloader.batch_size: 8 then, 4 now',
    ]
    assert changes_of_config(OLD, NEW) == expected
    title = 'The config is not that of the run to be resumed:'
    assert said.pop() == '\n'.join([title, *expected])
    hook.after_load_checkpoint(runner, {**checkpoint, 'meta': {}})
    runner.cfg = OLD
    hook.after_load_checkpoint(runner, checkpoint)
    runner._resume, runner.cfg = False, Config({})  # fine-tuning: another config is the purpose
    hook.after_load_checkpoint(runner, checkpoint)
    assert not said


# Checkpoints that are not finite
# -------------------------------


class Steep(Toy):
    """In the third iteration the loss is finite, but its gradients are not."""

    def change(self, output, loss):
        return loss + (self.layer.weight * 0).sum().sqrt() if self.calls == 3 else loss


class Masked(Toy):
    def __init__(self):
        super().__init__()
        self.register_buffer('mask', torch.full((3,), float('-inf')))
        self.register_buffer('mean', torch.zeros(3))
        self.more = nn.ModuleList(nn.BatchNorm1d(2) for _ in range(3))


def average(runner):
    return next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model.module


def spoil(value, of=lambda runner: runner.model, iteration=2):
    """Put infinity into what a function finds in a model, or in something else of the runner."""

    def act(runner):
        for tensor in value(of(runner)):
            tensor.data.fill_(float('inf'))

    return Act(act, iteration)


def second_moment(runner):
    state = runner.optim_wrapper.optimizer.state
    return [state[runner.model.layer.bias]['exp_avg_sq']]


EMA = dict(type='EMAHook', priority='VERY_HIGH')
ADAM = dict(optimizer=dict(type='Adam'))


@pytest.mark.parametrize(
    ('model', 'hooks', 'optim', 'names'),
    [
        # The average is written in place of the weights, and the weights beside it.
        (Toy, [EMA, spoil(lambda model: [model.layer.bias])], {}, 'module.layer.bias'),
        (Toy, [EMA, spoil(lambda model: [model.layer.bias], average)], {}, 'layer.bias'),
        # Adam's second moment becomes infinite, and the weights stay where they are.
        (Toy, [spoil(second_moment, lambda runner: runner)], ADAM, 'optimizer.state.1.exp_avg_sq'),
        (Masked, [spoil(lambda model: [model.mean])], {}, 'mean'),
        (
            Masked,
            [spoil(lambda model: list(model.more.parameters()))],
            {},
            'more.0.weight, more.0.bias, more.1.weight, more.1.bias, more.2.weight and 1 more',
        ),
    ],
)
def test_what_is_not_finite_is_not_written(model, hooks, optim, names, tmp_path):
    with pytest.raises(NumericError) as stopped:
        train(tmp_path, model(), hooks=hooks, optim=optim)
    assert str(stopped.value).startswith(
        f'The checkpoint of iteration 2 is not written, since these are not finite: {names}. The '
        f'last good checkpoint is {tmp_path}/iter_1.pth.'
    )
    assert files(tmp_path) == ['iter_1.pth', 'last_checkpoint']


@pytest.mark.parametrize(
    ('checkpoint', 'hooks', 'said', 'left'),
    [
        (dict(max_keep_ckpts=1), [], r'iteration 3 .* is .*/iter_2\.pth\.', ['iter_2.pth']),
        (dict(save_begin=3), [], 'iteration 3 .* No checkpoint has been written yet', []),
        (
            BEST,
            [scores(0.1, 0.2, 0.3)],
            r'iteration 2 .* is .*/iter_2\.pth\.',
            ['best_mIoU_iter_1.pth', 'iter_1.pth', 'iter_2.pth'],
        ),
    ],
)
def test_gradients_that_are_not_finite_leave_the_former(checkpoint, hooks, said, left, tmp_path):
    with pytest.raises(NumericError, match=said):
        train(tmp_path, Steep(), hooks=hooks, checkpoint=checkpoint)
    assert files(tmp_path) == [*left, 'last_checkpoint'] * bool(left)
    for name in left:
        assert not list(non_finite(load_checkpoint_data(tmp_path / name)))
    if left:
        assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_2.pth')


def test_constants_of_a_model_may_be_infinite(tmp_path):
    train(tmp_path, Masked(), hooks=[dict(type='EMAHook')])
    assert list(non_finite(load_checkpoint_data(tmp_path / 'iter_4.pth'))) == [
        'state_dict.mask', 'ema_state_dict.module.mask',
    ]  # fmt: skip


def test_what_the_error_says_about_going_on_is_so(tmp_path):
    run, faster = tmp_path / 'run', dict(SGD, lr=0.5)
    train(run, max_iters=2)
    # Gradients can be clipped in a resumed run; the learning rate is that of the checkpoint.
    optim = dict(optimizer=faster, clip_grad=dict(max_norm=1e-6))
    runner = train(run, max_iters=3, optim=optim)
    assert len(runner.message_hub.get_scalar('train/grad_norm').data[0]) == 1
    assert runner.optim_wrapper.get_lr()['lr'] == [0.01]
    before, after = (
        load_checkpoint_data(run / f'iter_{step}.pth')['optimizer']['state'][0]['momentum_buffer']
        for step in (2, 3)
    )
    assert (after - 0.9 * before).norm() < 1e-5  # what the gradient added
    # A new run has its own rate, whatever it loads.
    runner = train(tmp_path / 'new', optim=dict(optimizer=faster))
    assert runner.optim_wrapper.get_lr()['lr'] == [0.5]


# Kills at random moments
# -----------------------

KILLS = 40


class Progress(Hook):
    """Writes down each iteration, with its checkpoint; waits at one for being killed."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        folder = Path(runner.work_dir)
        with (folder / 'progress').open('a') as file:
            file.write(f'{runner.iter + 1}\n')
        hold = folder / 'hold'
        while hold.exists() and hold.read_text() == str(runner.iter + 1):
            time.sleep(0.01)


def train_to_be_killed(run):
    """Train what is quick but for its checkpoints, a new best one and another every iteration."""
    better = Act(lambda runner: report(runner, dict(mIoU=runner.iter)))
    train(
        run, Toy(700, 700), max_iters=100_000, hooks=[better, Progress()],
        checkpoint=dict(BEST, max_keep_ckpts=1),
        param_scheduler=dict(type='PolyLR', end=100_000, by_epoch=False),
    )  # fmt: skip


def train_small(config):
    runner = Runner.from_cfg(Config.fromfile(config))
    runner.register_hook(Progress())
    runner.train()


def kill(process):
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_no_kill_at_any_moment_loses_more_than_since_the_last_checkpoint(tmp_path):
    """After 40 kills, many of them while a checkpoint is being written."""
    run, log, moments = tmp_path / 'run', tmp_path / 'log', random.Random(0)
    done = []
    for _ in range(KILLS):
        process = start(train_to_be_killed, run, log=log, cwd=tmp_path)
        # From the moment it has gone further than before, or from its start.
        steps = moments.randrange(3)
        while _progress(run) < (done[-1] if done else 0) + steps:
            assert process.is_alive(), log.read_text()[-3000:]
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        kill(process)
        done.append(_newest(run))
        assert done[-1] >= max([_progress(run), *done])
        for file in run.glob('*.pth'):  # every file under its name is whole
            load_checkpoint_data(file, 'cpu')
    assert done[-1] >= KILLS / 2
    assert len(set(done)) > KILLS / 4


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_after_kills_a_run_ends_as_the_uninterrupted(workers, small_cfg, tmp_path):
    """Dropout and all random transforms of the config stay."""

    def start_or_resume(run):
        cfg = small_cfg(run, **{
            'train_cfg.max_iters': 16,
            'train_cfg.val_interval': 6,
            'default_hooks.checkpoint.interval': 3,
            'param_scheduler.0.end': 16,
            'resume': True,
        })  # fmt: skip
        for split in ('train', 'val'):
            cfg[f'{split}_dataloader'].update(num_workers=workers, persistent_workers=workers > 0)
        cfg.dump(f'{run}.py')
        return start(train_small, f'{run}.py', log=f'{run}.log', cwd=tmp_path)

    def finish(run):
        process = start_or_resume(run)
        process.join()
        assert process.exitcode == 0, Path(f'{run}.log').read_text()[-3000:]
        return comparable(load_checkpoint_data(run / 'iter_16.pth', 'cpu'))

    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    killed.mkdir()
    for iteration in (2, 5, 6, 10, 13):
        (killed / 'hold').write_text(str(iteration))
        process = start_or_resume(killed)
        while _progress(killed) < iteration:
            assert process.is_alive(), Path(f'{killed}.log').read_text()[-3000:]
            time.sleep(0.01)
        kill(process)
    (killed / 'hold').unlink()
    assert_same(finish(killed), finish(whole))


def _progress(run):
    """The last iteration that was finished, its checkpoint included."""
    if not (run / 'progress').exists():
        return 0
    lines = (run / 'progress').read_text().splitlines()
    return max(map(int, lines), default=0)


def _newest(run):
    if not (run / 'last_checkpoint').exists():
        return 0
    checkpoint = newest(run)
    assert {'state_dict', 'optimizer', 'param_schedulers'} <= set(checkpoint)
    assert Path(checkpoint['message_hub']['runtime_info']['best_ckpt']).exists()
    return checkpoint['meta']['iter']
