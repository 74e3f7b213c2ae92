from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mmengine.hooks
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import nn

from mmseg_coop.engine import load_checkpoint_data
from mmseg_coop.engine.hooks import AtomicCheckpointHook
from mmseg_coop.engine.hooks.checkpoint_hook import write_aside
from mmseg_coop.engine.numeric_fault import non_finite
from mmseg_coop.errors import NumericError

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
NUMBERS = itertools.count()


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1000, 10)

    def forward(self, inputs, mode='tensor'):
        if mode == 'loss':
            return dict(loss=self.layer(torch.stack(inputs)).square().mean())
        return [0.0]


class Scores(Hook):
    """Stands in for an evaluation after each iteration."""

    def __init__(self, scores):
        self.scores = scores

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        checkpoint = next(h for h in runner.hooks if isinstance(h, mmengine.hooks.CheckpointHook))
        if self.scores:
            checkpoint.after_val_epoch(runner, dict(mIoU=self.scores[runner.iter]))


def train(
    work_dir, *, hooks=(), max_iters=4, model=None, optim_wrapper=None, load_from=None, **checkpoint
):
    runner = Runner(
        model=model or Toy(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            dataset=[dict(inputs=torch.rand(1000)) for _ in range(8)],
            sampler=dict(type='InfiniteSampler'),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=optim_wrapper or dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        default_hooks=dict(
            checkpoint=dict(type='AtomicCheckpointHook', interval=1, by_epoch=False, **checkpoint)
        ),
        custom_hooks=list(hooks),
        default_scope='mmseg',
        experiment_name=f'run_{next(NUMBERS)}',  # the log of each is its own
        load_from=load_from and str(load_from),
        resume=True,
    )
    runner.train()
    return runner


def files(folder):
    """Names of the files, but for the config that each run writes."""
    return sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix != '.py')


def test_it_writes_the_files_of_mmengines_hook(tmp_path):
    # Importing the package leaves the hook of other configs alone.
    assert HOOKS.get('CheckpointHook') is mmengine.hooks.CheckpointHook
    runner = train(tmp_path / 'run')
    assert any(type(hook) is AtomicCheckpointHook for hook in runner.hooks)
    expected = ['iter_1.pth', 'iter_2.pth', 'iter_3.pth', 'iter_4.pth', 'last_checkpoint']
    assert files(tmp_path / 'run') == expected
    assert (tmp_path / 'run/last_checkpoint').read_text() == str(tmp_path / 'run/iter_4.pth')


def record_events(monkeypatch):
    events = []
    replace, remove = os.replace, os.remove
    monkeypatch.setattr(
        os, 'replace', lambda a, b: (events.append(f'+{Path(b).name}'), replace(a, b))
    )
    monkeypatch.setattr(os, 'remove', lambda a: (events.append(f'-{Path(a).name}'), remove(a)))
    return events


@pytest.mark.parametrize('kept', [1, 2])
def test_the_oldest_goes_only_when_the_newest_is_there(kept, tmp_path, monkeypatch):
    events = record_events(monkeypatch)
    train(tmp_path / 'run', max_keep_ckpts=kept)
    expected = []
    for step in range(1, 5):
        expected += [f'+iter_{step}.pth', '+last_checkpoint']
        expected += [f'-iter_{step - kept}.pth'] if step > kept else []
    assert events == expected


def test_the_former_best_goes_only_when_the_new_best_is_there(tmp_path, monkeypatch):
    events = record_events(monkeypatch)
    scores = [0.3, 0.2, 0.5, 0.5]
    train(tmp_path / 'run', save_best='mIoU', rule='greater', hooks=[Scores(scores)])
    best = [event for event in events if 'best' in event]
    # Scores runs before the checkpoint hook of the same iteration: the count starts at 0.
    assert best == [
        '+best_mIoU_iter_0.pth', '+best_mIoU_iter_2.pth', '-best_mIoU_iter_0.pth',
    ]  # fmt: skip


def test_several_kinds_of_best(tmp_path, monkeypatch):
    class Two(Scores):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            hook = next(h for h in runner.hooks if isinstance(h, AtomicCheckpointHook))
            loss, miou = self.scores[runner.iter]
            hook.after_val_epoch(runner, dict(loss=loss, mIoU=miou))

    scores = [(3.0, 0.1), (2.0, 0.1), (2.5, 0.2), (2.5, 0.1)]
    run = tmp_path / 'run'
    train(run, save_best=['loss', 'mIoU'], max_keep_ckpts=1, hooks=[Two(scores)])
    assert files(run) == [
        'best_loss_iter_1.pth', 'best_mIoU_iter_2.pth', 'iter_4.pth', 'last_checkpoint',
    ]  # fmt: skip


# Whose files are deleted
# -----------------------


def test_the_best_of_another_run_stays(tmp_path):
    """A run that goes on in another folder has a better one, and keeps fewer checkpoints."""
    old, new = tmp_path / 'old', tmp_path / 'new'
    best = dict(save_best='mIoU', rule='greater', max_keep_ckpts=2)
    train(old, max_iters=2, hooks=[Scores([0.3, 0.2])], **best)
    before = files(old)
    assert before == ['best_mIoU_iter_0.pth', 'iter_1.pth', 'iter_2.pth', 'last_checkpoint']
    scores = Scores([0.3, 0.2, 0.4, 0.5])
    train(new, load_from=old / 'iter_2.pth', hooks=[scores], **{**best, 'max_keep_ckpts': 1})
    assert files(old) == before
    # In its own folder only the new best one is left.
    assert files(new) == ['best_mIoU_iter_3.pth', 'iter_4.pth', 'last_checkpoint']


class Claim(Hook):
    """Makes a run believe what a checkpoint that it goes on from could say."""

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
    best = dict(save_best=['mIoU', 'acc'], rule='greater') if several else dict(save_best='mIoU')
    name = 'best_ckpt_mIoU' if several else 'best_ckpt'

    class Both(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            hook = next(h for h in runner.hooks if isinstance(h, AtomicCheckpointHook))
            hook.after_val_epoch(runner, dict(mIoU=0.5, acc=0.5))

    claim = Claim(**{name: str(tmp_path) + f'/{claimed}' if claimed else ''})
    train(tmp_path / 'run', max_iters=1, hooks=[claim, Both()], **best)
    assert (tmp_path / 'run/best_mIoU_iter_0.pth').is_file()
    gone = {path for path in before if not path.exists()}
    assert gone == ({target} if deleted else set())


def test_numbers_of_old_checkpoints_are_numbers(tmp_path):
    (tmp_path / 'victim.pth').touch()
    (tmp_path / 'run/iter_').mkdir(parents=True)  # so that the path exists
    (tmp_path / 'run/iter_7.pth').touch()
    claim = Claim(keep_ckpt_ids=['/../../victim', 7])
    train(tmp_path / 'run', max_iters=1, hooks=[claim], max_keep_ckpts=1)
    assert (tmp_path / 'victim.pth').exists()
    assert files(tmp_path / 'run') == ['iter_1.pth', 'last_checkpoint']


class Limit(Hook):
    """Limits the size of files before an iteration."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 2:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (30_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )


@pytest.fixture
def _no_limit_afterwards():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures('_no_limit_afterwards')
def test_a_limit_on_the_size_of_files_leaves_the_previous_checkpoint(tmp_path):
    run = tmp_path / 'run'
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match='earlier checkpoints are intact') as failed:
        train(run, max_keep_ckpts=1, hooks=[Limit()])
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed.value.errno == errno.EFBIG
    assert failed.value.filename == str(run / 'iter_3.pth')
    assert files(run) == ['iter_2.pth', 'last_checkpoint']
    assert (run / 'last_checkpoint').read_text() == str(run / 'iter_2.pth')
    assert load_checkpoint_data(run / 'iter_2.pth')['meta']['iter'] == 2
    assert train(run, max_keep_ckpts=1).iter == 4  # goes on from there
    assert files(run) == ['iter_4.pth', 'last_checkpoint']


@pytest.mark.parametrize('fails_at', ['write', 'fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file(fails_at, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / 'a.pth'
    write_aside(b'old', path)
    if fails_at == 'write':
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5, limit[1]))
    else:
        monkeypatch.setattr(os, fails_at, full)
    try:
        with pytest.raises(OSError, match='not written') as failed:
            write_aside(b'new and longer', path)
    finally:
        if fails_at == 'write':
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert failed.value.filename == str(path)
    assert path.read_bytes() == b'old'
    assert files(tmp_path) == ['a.pth']


@pytest.mark.parametrize('refuses', ['fsync', 'open'])
def test_a_folder_that_cannot_be_synced_is_no_fault(refuses, tmp_path, monkeypatch):
    """Many shares refuse to sync one (EINVAL), and Windows to open one (EACCES)."""
    original = getattr(os, refuses)

    def refuse(what, *more):
        if stat.S_ISDIR(os.stat(what).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return original(what, *more)

    with monkeypatch.context() as share:
        share.setattr(os, refuses, refuse)
        with pytest.raises(OSError, match='Invalid argument'):  # the stand-in refuses
            os.fsync(os.open(tmp_path, os.O_RDONLY))
        write_aside(b'whole', tmp_path / 'a.pth')
    assert (tmp_path / 'a.pth').read_bytes() == b'whole'
    assert files(tmp_path) == ['a.pth']


def test_what_a_kill_leaves_is_overwritten(tmp_path):
    (tmp_path / '.a.pth.part').write_bytes(b'half')
    write_aside(b'whole', tmp_path / 'a.pth')
    assert files(tmp_path) == ['a.pth']


def test_a_changed_config_is_said_before_training_starts():
    said = []
    runner = SimpleNamespace(
        _resume=True,
        _load_from='old.pth',
        model=Toy(),
        optim_wrapper=None,
        param_schedulers=None,
        cfg=Config(dict(train_dataloader=dict(batch_size=4), train_cfg=dict(max_iters=9))),
        logger=SimpleNamespace(warning=said.append),
    )
    old = Config(dict(train_dataloader=dict(batch_size=8), train_cfg=dict(max_iters=9)))
    checkpoint = dict(meta=dict(cfg=old.pretty_text), message_hub={}, optimizer={})
    AtomicCheckpointHook(interval=1).after_load_checkpoint(runner, checkpoint)
    assert said == [
        'The config is not that of the run to be resumed:\n'
        'train_dataloader.batch_size: 8 in the checkpoint, 4 now'
    ]
    runner.cfg = old
    AtomicCheckpointHook(interval=1).after_load_checkpoint(runner, checkpoint)
    AtomicCheckpointHook(interval=1).after_load_checkpoint(runner, {**checkpoint, 'meta': {}})
    runner._resume, runner.cfg = False, Config({})  # fine-tuning: another config is the purpose
    AtomicCheckpointHook(interval=1).after_load_checkpoint(runner, checkpoint)
    assert len(said) == 1


# Checkpoints that are not finite
# -------------------------------


class Steep(Toy):
    """In the third iteration the loss is finite, but its gradients are not."""

    calls = 0

    def forward(self, inputs, mode='tensor'):
        self.calls += 1
        losses = super().forward(inputs, mode)
        if self.calls == 3:
            losses['loss'] = losses['loss'] + (self.layer.weight * 0).sum().sqrt()
        return losses


class Act(Hook):
    """Does something after the step of an iteration."""

    priority = 'HIGH'

    def __init__(self, iteration, act):
        self.iteration, self.act = iteration, act

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            self.act(runner)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    run = tmp_path / 'run'
    with pytest.raises(NumericError) as stopped:
        train(run, model=Steep(), max_keep_ckpts=1)
    said = str(stopped.value)
    assert said.startswith(
        'The checkpoint of iteration 3 is not written, since these are not finite: layer.weight, '
        'optimizer.state.0.momentum_buffer. The last good checkpoint is '
    )
    assert str(run / 'iter_2.pth') in said
    assert files(run) == ['iter_2.pth', 'last_checkpoint']
    assert (run / 'last_checkpoint').read_text() == str(run / 'iter_2.pth')
    assert not list(non_finite(load_checkpoint_data(run / 'iter_2.pth')))


def test_a_first_checkpoint_that_is_not_finite(tmp_path):
    with pytest.raises(NumericError, match='No checkpoint has been written yet'):
        train(tmp_path / 'run', model=Steep(), save_begin=3)
    assert files(tmp_path / 'run') == []


def test_a_best_checkpoint_that_is_not_finite_leaves_the_former(tmp_path):
    run, scores = tmp_path / 'run', [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(NumericError, match=rf'iteration 2 .* {run}/iter_2\.pth'):
        train(run, model=Steep(), save_best='mIoU', rule='greater', hooks=[Scores(scores)])
    # Scores runs before the checkpoint hook of the same iteration: the count starts at 0.
    assert files(run) == ['best_mIoU_iter_1.pth', 'iter_1.pth', 'iter_2.pth', 'last_checkpoint']
    assert not list(non_finite(load_checkpoint_data(run / 'best_mIoU_iter_1.pth')))


@pytest.mark.parametrize('kept', ['model', 'average'])
def test_of_a_moving_average_both_sides_are_looked_at(kept, tmp_path):
    def spoil(runner):
        average = next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model
        layer = runner.model.layer if kept == 'model' else average.module.layer
        layer.bias.data[3] = float('inf')

    hooks = [dict(type='EMAHook', priority='VERY_HIGH'), Act(2, spoil)]
    # The average is written in place of the weights, and the weights beside it.
    name = 'module.layer.bias' if kept == 'model' else 'layer.bias'
    with pytest.raises(NumericError, match=rf'not finite: {name}\. '):
        train(tmp_path / 'run', hooks=hooks)
    assert files(tmp_path / 'run') == ['iter_1.pth', 'last_checkpoint']


def test_an_optimizer_that_overflows_is_noticed(tmp_path):
    """Adam's second moment becomes infinite, and the weights stay where they are."""

    def overflow(runner):
        state = runner.optim_wrapper.optimizer.state
        state[runner.model.layer.bias]['exp_avg_sq'] += float('inf')

    with pytest.raises(NumericError, match=r'finite: optimizer\.state\.1\.exp_avg_sq\. '):
        train(
            tmp_path / 'run',
            optim_wrapper=dict(optimizer=dict(type='Adam')),
            hooks=[Act(2, overflow)],
        )


def test_constants_of_a_model_may_be_infinite(tmp_path):
    def masked():
        model = Toy()
        model.register_buffer('mask', torch.full((3,), float('-inf')))
        model.register_buffer('mean', torch.zeros(3))
        return model

    train(tmp_path / 'run', model=masked(), hooks=[dict(type='EMAHook')])
    assert list(non_finite(load_checkpoint_data(tmp_path / 'run/iter_4.pth'))) == [
        'state_dict.mask', 'ema_state_dict.module.mask',
    ]  # fmt: skip
    spoil = Act(2, lambda runner: runner.model.mean.fill_(float('nan')))
    with pytest.raises(NumericError, match='finite: mean'):
        train(tmp_path / 'other', model=masked(), hooks=[spoil])


def test_many_names_are_counted(tmp_path):
    model = Toy()
    model.more = nn.ModuleList(nn.BatchNorm1d(2) for _ in range(3))

    def spoil(runner):
        for parameter in runner.model.more.parameters():
            parameter.data.fill_(float('nan'))

    with pytest.raises(NumericError, match=r'more\.2\.weight and 1 others\. '):
        train(tmp_path / 'run', model=model, hooks=[Act(1, spoil)])


def test_what_the_error_says_about_going_on_is_so(tmp_path):
    run, faster = tmp_path / 'run', dict(type='SGD', lr=0.5, momentum=0.9)
    train(run, max_iters=2)
    # Gradients can be clipped in a resumed run; the learning rate is that of the checkpoint.
    runner = train(
        run, max_iters=3, optim_wrapper=dict(optimizer=faster, clip_grad=dict(max_norm=1e-6))
    )
    norms, _ = runner.message_hub.get_scalar('train/grad_norm').data
    assert len(norms) == 1
    assert runner.optim_wrapper.get_lr()['lr'] == [0.01]
    before, after = (
        load_checkpoint_data(run / f'iter_{step}.pth')['optimizer']['state'][0]['momentum_buffer']
        for step in (2, 3)
    )
    assert (after - 0.9 * before).norm() < 1e-5  # what the gradient added
    # A new run has its own rate, whatever it loads.
    assert train(tmp_path / 'new', optim_wrapper=dict(optimizer=faster)).optim_wrapper.get_lr()[
        'lr'
    ] == [0.5]


# Kills at random moments
# -----------------------

#: Imports once, then runs the training in a forked process for each line it is sent.
RUNS = """
import os, sys, time
answers = os.fdopen(os.dup(1), 'w')
os.dup2(os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
os.dup2(1, 2)
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
config = Config.fromfile(sys.argv[1])
config.merge_from_dict(eval(sys.argv[2]))

@HOOKS.register_module()
class Progress(Hook):
    priority = 'LOWEST'
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with open(os.path.join(runner.work_dir, 'progress'), 'a') as file:
            file.write(f'{runner.iter + 1}\\n')
        hold = os.path.join(runner.work_dir, 'hold')
        while os.path.exists(hold) and open(hold).read() == str(runner.iter + 1):
            time.sleep(0.01)  # until it is killed

Runner.from_cfg  # imported before the fork
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            Runner.from_cfg(config).train()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    print(child, file=answers, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
"""
KILLS = 60


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('camvid') / 'data'
    subprocess.run(
        [sys.executable, ROOT / 'tools/dataset_converters/make_mini_dataset.py',
         *('--layout', 'camvid', '--out', folder, '--train', '4', '--val', '1'),
         *('--size', '64x64')], check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def server(data):
    """Start a process that trains a small model each time the returned function is called."""
    started = []

    def serve(run, **options):
        options = {
            'resume': True,
            'work_dir': str(run),
            'randomness': dict(seed=0),
            'visualizer': dict(vis_backends=[]),
            'custom_hooks': [dict(type='Progress')],
            'train_dataloader.batch_size': 2,
            'default_hooks.logger.interval': 5,
            'model.backbone.networks.top.stem_channels': 8,
            'model.backbone.networks.top.base_channels': 8,
            'model.backbone.networks.bottom.widen_factor': 0.25,
            'model.decode_head.networks.top': dict(in_channels=64, low_level_in_channels=8),
            'model.decode_head.networks.bottom': dict(in_channels=80, low_level_in_channels=8),
            **options,
        }
        workers = options.pop('workers', 0)
        for split in ('train', 'val'):
            options[f'{split}_dataloader.dataset.data_root'] = str(data)
            options[f'{split}_dataloader.num_workers'] = workers
            options[f'{split}_dataloader.persistent_workers'] = workers > 0
        process = subprocess.Popen(
            [sys.executable, '-c', RUNS, CONFIG, repr(options), f'{run}.log'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)),
        )  # fmt: skip
        started.append(process)

        def train_once():
            """Return the number of the training process, and a function that awaits its end."""
            process.stdin.write('\n')
            process.stdin.flush()
            return int(process.stdout.readline()), lambda: int(process.stdout.readline())

        return train_once

    yield serve
    for process in started:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_kill_at_any_moment_loses_more_than_since_the_last_checkpoint(server, tmp_path):
    run, moments = tmp_path / 'run', random.Random(0)
    start = server(
        run,
        **{
            'train_cfg.max_iters': 100_000,
            'train_cfg.val_interval': 2,
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.checkpoint.max_keep_ckpts': 1,
        },
    )
    done = []
    for _ in range(KILLS):
        child, wait = start()
        # From the moment it has gone further than before, or from its start.
        steps = moments.randrange(3)
        while _progress(run) < (done[-1] if done else 0) + steps:
            os.kill(child, 0)  # an error if it has ended by itself
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        assert wait() == -signal.SIGKILL, Path(f'{run}.log').read_text()[-3000:]
        newest = _newest(run)
        assert newest >= _progress(run)
        assert not done or newest >= done[-1]
        done.append(newest)
        for file in run.glob('*.pth'):  # every file under its name is whole
            load_checkpoint_data(file, 'cpu')
    assert len(list(run.glob('best_*.pth'))) in (1, 2)
    assert done[-1] >= KILLS / 2
    assert len(set(done)) > KILLS / 4


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_after_kills_a_run_ends_as_the_uninterrupted(workers, server, tmp_path):
    options = {
        'train_cfg.max_iters': 16,
        'train_cfg.val_interval': 6,
        'default_hooks.checkpoint.interval': 3,
        'param_scheduler.0.end': 16,
        # Dropout and all random transforms of the config stay.
        'workers': workers,
    }
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    _, wait = server(whole, **options)()
    assert wait() == 0, Path(f'{whole}.log').read_text()[-3000:]
    start = server(killed, **options)
    for iteration in (2, 5, 6, 10, 13):
        killed.mkdir(exist_ok=True)
        (killed / 'hold').write_text(str(iteration))
        child, wait = start()
        while _progress(killed) < iteration:
            os.kill(child, 0)  # an error if it has ended by itself
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        assert wait() == -signal.SIGKILL, Path(f'{killed}.log').read_text()[-3000:]
    (killed / 'hold').unlink()
    _, wait = start()
    assert wait() == 0, Path(f'{killed}.log').read_text()[-3000:]
    ends = [load_checkpoint_data(run / 'iter_16.pth', 'cpu') for run in (whole, killed)]
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert _bytes(ends[0][key]) == _bytes(ends[1][key]), key
    logs = [end['message_hub']['log_scalars'] for end in ends]
    for key in logs[0]:
        if not key.endswith('time'):
            assert [a.tolist() for a in logs[0][key].data] == [
                a.tolist() for a in logs[1][key].data
            ]


def _bytes(state):
    """All tensors and numbers of nested containers, as comparable values."""
    if isinstance(state, dict):
        return {key: _bytes(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [_bytes(value) for value in state]
    return state.numpy().tobytes() if isinstance(state, torch.Tensor) else state


def _progress(run):
    """The last iteration that was finished, its checkpoint included."""
    if not (run / 'progress').exists():
        return 0
    lines = (run / 'progress').read_text().splitlines()
    return max(map(int, lines), default=0)


def _newest(run):
    if not (run / 'last_checkpoint').exists():
        return 0
    checkpoint = load_checkpoint_data((run / 'last_checkpoint').read_text(), 'cpu')
    assert {'state_dict', 'optimizer', 'param_schedulers'} <= set(checkpoint)
    return checkpoint['meta']['iter']
