"""Starts a run, also in several processes without CUDA."""

from __future__ import annotations

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.registry import RUNNERS


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config.

    Args:
        cfg: Config of a run, with ``launcher``.

    Returns:
        The runner, of the class that ``runner_type`` names if it is set.
    """
    _init_cpu_process_group(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _init_cpu_process_group(cfg: Config) -> None:
    """Let torchrun's processes work on CPUs.

    mmengine's launcher selects a CUDA device first of all. Where there is none, this starts gloo
    before the runner does, which then leaves the process group alone, and wraps the model without a
    device. With CUDA it does nothing.

    Args:
        cfg: Config of a run whose ``launcher`` is set; ``model_wrapper_cfg`` is filled in.
    """
    if cfg.launcher != 'pytorch' or torch.cuda.is_available() or dist.is_initialized():
        return
    dist.init_process_group('gloo')
    cfg.setdefault('model_wrapper_cfg', dict(type='MMDistributedDataParallel', device_ids=None))
