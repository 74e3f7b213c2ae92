"""Starts a run, also in several processes without CUDA."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.registry import RUNNERS

from .build_errors import config_errors
from .config_check import ConfigError
from .run_check import RunCheckHook


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config.

    Args:
        cfg: Config of a run, with ``launcher``.

    Returns:
        The runner, of the class that ``runner_type`` names if it is set. It checks, before it
        starts, that its parts agree.

    Raises:
        ConfigError: A part of the config cannot be built.
    """
    _init_cpu_process_group(cfg)
    with config_errors(cfg):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(RunCheckHook())
    return runner


def _init_cpu_process_group(cfg: Config) -> None:
    """Let torchrun's processes work on CPUs.

    mmengine's launcher selects a CUDA device first of all. Where there is none, this starts gloo
    before the runner does, which then leaves the process group alone, and wraps the model without a
    device. With CUDA it does nothing.

    A process that dies closes its connections, so the others end with an error at their next
    exchange. One that hangs keeps them open: the others then wait for as long as
    ``env_cfg.dist_cfg.timeout`` says, which mmengine hands to NCCL, and this to gloo.

    Args:
        cfg: Config of a run whose ``launcher`` is set; ``model_wrapper_cfg`` is filled in.

    Raises:
        ConfigError: The timeout is no number of seconds.
    """
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
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
