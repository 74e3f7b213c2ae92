"""Starts a run, also in several processes without CUDA."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from mmseg.registry import RUNNERS

from ..config.build_errors import config_errors
from ..engine.hooks.run_check_hook import RunCheckHook
from ..errors import ConfigError
from ..models.cooperation.paths import TOPOLOGIES, resolve_topology
from .console import Console, ConsoleHook

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Where each launcher notes the rank of a process.
_RANK_VARIABLES = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def lock_work_dir(cfg: Config) -> ExitStack:
    """Take the work directory for one training, before that writes anything there.

    The lock is one of the operating system on the file ``.lock``, which ends with the process,
    whatever ends it. Only the first of several processes takes it, since only that one writes.
    Windows, and file systems that know no locks, go without.

    Args:
        cfg: Config of the run, with ``work_dir``.

    Returns:
        What holds the lock until it is left.

    Raises:
        ConfigError: Another training has it.
    """
    variable = _RANK_VARIABLES.get(cfg.get('launcher', 'none'), '')
    if fcntl is None or os.environ.get(variable, '0') != '0':
        return ExitStack()
    folder = Path(cfg.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as lock:
        file = lock.enter_context(open(folder / '.lock', 'a+'))
        try:
            # Unlike one by flock, it is not handed down to the workers of the data loaders, which
            # outlive a killed process for some seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise ConfigError(
                    f'work_dir {str(folder)!r} is in use by another training ({file.read(100)}), '
                    'whose checkpoints this one would overwrite. Wait for its end, or choose '
                    'another folder with --work-dir.'
                ) from None
        else:
            file.truncate(0)
            file.write(f'process {os.getpid()} on {os.uname().nodename}')
            file.flush()
        return lock.pop_all()


def build_runner(cfg: Config, local_rank: int = 0, console: Console | None = None) -> Runner:
    """Build the runner of a config.

    Args:
        cfg: Config of a run.
        local_rank: Number of this process on its machine, where the launcher does not note it in
            the environment. Defaults to 0.
        console: What shows the run instead of the whole log. Defaults to None: the log is shown.

    Returns:
        The runner, of the class that ``runner_type`` names if it is set. It checks, before it
        starts, that its parts agree.

    Raises:
        ConfigError: A part of the config cannot be built, or the runner is another one than
            mmengine's ``Runner``.
    """
    os.environ.setdefault('LOCAL_RANK', str(local_rank))  # where mmengine looks for it
    _init_cpu_process_group(cfg)
    with config_errors(cfg, 'model'):
        spell_out_topology(cfg.get('model', {}))
    # The config is written to the log, to two files and into every checkpoint. It reads well enough
    # as it is; yapf's layout takes mmengine a second or more each time.
    object.__setattr__(cfg, '_format_python_code', False)
    kind = RUNNERS.get(cfg.get('runner_type', 'Runner'))
    if kind is None:
        raise ConfigError(f'runner_type {cfg.runner_type!r} is not registered; import its module.')
    if not issubclass(kind, Runner):  # FlexibleRunner, with FSDP, DeepSpeed or ColossalAI
        raise ConfigError(
            f'runner_type {cfg.runner_type!r} is no Runner: its strategies split a model at parts '
            'whose forward is called, but cooperating heads run in steps, and its checkpoints '
            'cannot be resumed exactly. Leave runner_type and strategy out; to save memory, use '
            'ActivationCheckpointHook.'
        )
    with config_errors(cfg):
        runner = (console.quiet(kind) if console else kind).from_cfg(cfg)
    runner.register_hook(RunCheckHook())
    if console and is_main_process():
        runner.register_hook(ConsoleHook(console))
    return runner


def spell_out_topology(model: Any) -> None:
    """Write into the config of a model who sends to whom.

    ``'one_way'``, and the order of several senders, follow the order of the networks. mmengine
    writes configs, those in checkpoints among them, with sorted keys, so that a model built from
    what it wrote would send the other way and load its weights without a word.
    """
    head = model.get('decode_head') or model.get('module', {}).get('decode_head')
    if not isinstance(head, dict) or 'networks' not in head:
        return
    topology = head.get('topology', 'cross')
    if topology in TOPOLOGIES:  # else it is spelt out, or the head says what is wrong with it
        senders_of = resolve_topology(topology, list(head['networks']))
        head['topology'] = {name: list(senders) for name, senders in senders_of.items()}


def _init_cpu_process_group(cfg: Config) -> None:
    """Let torchrun's processes work on CPUs.

    mmengine's launcher selects a CUDA device first of all. Where there is none, this starts gloo
    before the runner does, which then leaves the process group alone, and wraps the model without a
    device. With CUDA it does nothing.

    A process that dies closes its connections, so the others end with an error at their next
    exchange. One that hangs keeps them open: the others then wait for as long as
    ``env_cfg.dist_cfg.timeout`` says, which mmengine hands to NCCL, and this to gloo.
    """
    if cfg.get('launcher') != 'pytorch' or torch.cuda.is_available():
        return
    cfg.setdefault('model_wrapper_cfg', dict(type='MMDistributedDataParallel', device_ids=None))
    if dist.is_initialized():
        return
    options: dict[str, Any] = {}
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    if timeout is not None:  # otherwise it is torch's half an hour
        if not isinstance(timeout, (int, float)) or timeout <= 0:
            raise ConfigError(
                f'env_cfg.dist_cfg.timeout has to be a positive number of seconds, not {timeout!r}.'
            )
        options['timeout'] = timedelta(seconds=timeout)
    dist.init_process_group('gloo', **options)
