from __future__ import annotations

import errno
import fcntl
import os
import signal
from contextlib import contextmanager

import pytest
from mmengine.config import Config
from mmseg.registry import MODELS

from mmseg_coop.apis import build_runner, launch, lock_work_dir, prepare_training, train
from mmseg_coop.errors import ConfigError
from mmseg_coop.models.cooperation import resolve_topology
from tests.conftest import MINI, ROOT


def config(folder, launcher='none'):
    return Config(dict(work_dir=str(folder), launcher=launcher))


@contextmanager
def training(folder):
    """A process that holds the lock of a folder, and a worker of it; gives both numbers."""
    read, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        lock = lock_work_dir(config(folder))
        worker = os.fork()
        if worker:
            os.write(write, str(worker).encode())
        signal.pause()
        lock.close()
        os._exit(0)
    worker = int(os.read(read, 20))
    os.close(read)
    os.close(write)
    try:
        yield holder, worker
    finally:
        for process in (holder, worker):
            os.kill(process, signal.SIGKILL)  # one that ended stays a number until it is awaited
        os.waitpid(holder, 0)


def test_a_second_training_in_a_folder_is_refused(tmp_path):
    with training(tmp_path / 'run') as (holder, _):
        with pytest.raises(ConfigError) as refused:
            lock_work_dir(config(tmp_path / 'run'))
        said = str(refused.value)
        assert said.startswith(f"work_dir '{tmp_path}/run' is in use by another training (process ")
        assert f'(process {holder} on {os.uname().nodename})' in said
        assert said.endswith('choose another folder with --work-dir.')
        assert '\n' not in said
        lock_work_dir(config(tmp_path / 'other')).close()


def test_a_killed_training_leaves_no_lock_though_its_workers_live(tmp_path):
    with training(tmp_path) as (holder, worker):
        os.kill(holder, signal.SIGKILL)
        os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
        os.kill(worker, 0)  # it is there
        with lock_work_dir(config(tmp_path)):
            assert (tmp_path / '.lock').read_text().startswith(f'process {os.getpid()} on ')


def test_a_training_that_ended_leaves_no_lock(tmp_path):
    with lock_work_dir(config(tmp_path)):
        pass
    with training(tmp_path):
        pass


@pytest.mark.parametrize(
    ('launcher', 'variable'),
    [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_RANK')],
)
def test_of_several_processes_the_first_takes_the_lock(launcher, variable, tmp_path, monkeypatch):
    for rank in range(2):
        monkeypatch.setenv(variable, str(rank))
        with lock_work_dir(config(tmp_path / str(rank), launcher)):
            assert (tmp_path / str(rank) / '.lock').exists() == (rank == 0)


def test_where_there_are_no_locks_a_training_goes_on_without(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as share:
        share.setattr(fcntl, 'lockf', refuse)
        with lock_work_dir(config(tmp_path / 'share')):
            pass
    monkeypatch.setattr(launch, 'fcntl', None)  # Windows
    with lock_work_dir(config(tmp_path / 'Windows')):
        pass


def test_train_refuses_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr('mmseg_coop.apis.training.check_data', lambda *_, **__: None)
    with training(tmp_path / 'run'):
        with pytest.raises(ConfigError, match=r'^work_dir .* is in use by another training'):
            train(str(MINI), work_dir=str(tmp_path / 'run'))
        assert os.listdir(tmp_path / 'run') == ['.lock']


def test_train_resumes_from_the_latest_or_starts_as_the_config_says(tmp_path, monkeypatch):
    monkeypatch.setattr('mmseg_coop.apis.training.check_data', lambda *_, **__: None)

    def prepare():
        options = ['load_from=pretrained.pth']
        cfg = prepare_training(
            str(MINI), work_dir=str(tmp_path), resume='auto', cfg_options=options
        )
        return cfg.resume, cfg.load_from

    assert prepare() == (False, 'pretrained.pth')
    latest = tmp_path / 'iter_2.pth'
    (tmp_path / 'last_checkpoint').write_text(str(latest))
    with pytest.raises(FileNotFoundError, match=f"^checkpoint '{latest}' does not exist"):
        prepare()  # it was deleted, or the folder was moved
    latest.touch()
    assert prepare() == (True, str(latest))


@pytest.mark.parametrize(
    ('device', 'amp', 'wrapper'),
    [
        ('cpu', 'auto', 'BFloat16OptimWrapper'),
        ('cpu', 'bfloat16', 'BFloat16OptimWrapper'),
        ('cuda', 'auto', 'AmpOptimWrapper'),
        ('cuda', 'bfloat16', 'BFloat16OptimWrapper'),
        ('cuda', 'float16', 'AmpOptimWrapper'),
        ('cuda', None, 'AmpOptimWrapper'),
    ],
)
def test_options_for_speed_replace_what_the_config_says(device, amp, wrapper, monkeypatch):
    monkeypatch.setattr('mmseg_coop.apis.training.check_data', lambda *_, **__: None)
    monkeypatch.setattr('mmseg_coop.apis.training.get_device', lambda: device)
    options = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'}
    options['custom_hooks'] = [dict(type='CompileHook', backend='eager')]
    cfg = prepare_training(
        str(MINI), cfg_options=options, amp=amp, channels_last=True, compile=True
    )
    assert cfg.custom_hooks == [*options['custom_hooks'], dict(type='ChannelsLastHook')]
    assert cfg.optim_wrapper.type == wrapper
    assert ('dtype' in cfg.optim_wrapper) == (amp is None)
    assert cfg.optim_wrapper.optimizer.type == 'SGD'


def test_mixed_precision_leaves_a_wrapper_of_ones_own_alone(monkeypatch):
    with pytest.raises(ConfigError, match=r"optim_wrapper\.type='DeepSpeedOptimWrapper'"):
        prepare_training(
            str(MINI), cfg_options={'optim_wrapper.type': 'DeepSpeedOptimWrapper'}, amp='auto'
        )


def test_the_config_that_a_run_writes_builds_the_same_paths(tmp_path, monkeypatch):
    """Mmengine sorts the networks in it, which would turn one_way around."""
    # nor is it laid out, which takes a second each time
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', None)
    monkeypatch.setattr('mmengine.config.config.FormatCode', None, raising=False)
    cfg = Config.fromfile(MINI)
    cfg.merge_from_dict(dict(work_dir=str(tmp_path), launcher='none'))
    cfg.model.decode_head.topology = 'one_way'
    runner = build_runner(cfg)
    written = Config.fromstring(runner.cfg.pretty_text, '.py')
    assert list(written.model.decode_head.networks) == ['bottom', 'top']
    for model in (runner.model, MODELS.build(written.model)):
        for layers in model.decode_head.cooperation.paths.values():
            assert all(layer.senders_of == {'bottom': ('top',)} for layer in layers)


@pytest.mark.parametrize('path', sorted(ROOT.glob('configs/*/*one-way*.py')), ids=lambda p: p.stem)
def test_one_way_configs_have_the_same_paths_when_mmengine_has_written_them(path):
    cfg = Config.fromfile(path)
    written = Config(cfg._cfg_dict, format_python_code=False).pretty_text
    heads = [c.model.decode_head for c in (cfg, Config.fromstring(written, '.py'))]
    first, second = (resolve_topology(head.topology, list(head.networks)) for head in heads)
    assert first == second == dict(bottom=('top',))


def test_a_runner_that_splits_the_model_is_refused(tmp_path):
    cfg = Config.fromfile(MINI)
    cfg.merge_from_dict(dict(work_dir=str(tmp_path), launcher='none', runner_type='FlexibleRunner'))
    with pytest.raises(ConfigError, match=r"'FlexibleRunner' is no Runner: .* run in steps"):
        build_runner(cfg)
