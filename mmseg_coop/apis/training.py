"""Trains a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner, find_latest_checkpoint

from ..config import config_errors, load_config
from ..engine.precision import half_precision
from ..errors import ConfigError
from .console import Console
from .data_check import check_data
from .launch import build_runner, lock_work_dir
from .model import require_file


def train(config: str, *, local_rank: int = 0, **options: Any) -> Runner:
    """Train the model of a config, from the check of its data to the last checkpoint.

    Args:
        config: Config file.
        local_rank: Number of this process on its machine, where the launcher does not note it in
            the environment. Defaults to 0.
        **options: As of :func:`prepare_training`.

    Returns:
        The runner, which has the trained model.

    Raises:
        CoopError: The config, the data, a checkpoint or the numbers of the training are at fault.
        OSError: A file does not exist, or cannot be read or written.
    """
    cfg = prepare_training(config, **options)
    with lock_work_dir(cfg), Console() as console:
        runner = build_runner(cfg, local_rank, console)
        with config_errors(cfg):
            runner.train()
    return runner


def prepare_training(
    config: str,
    *,
    work_dir: str | None = None,
    cfg_options: Mapping[str, Any] | Sequence[str] | None = None,
    resume: str | None = None,
    amp: str | None = None,
    channels_last: bool = False,
    compile: bool = False,
    no_validate: bool = False,
    data_faults: str = 'stop',
    launcher: str = 'none',
) -> Config:
    """Settle the config of a training and check its data.

    Args:
        config: Config file.
        work_dir: Where the run writes. Defaults to None: the config's, or else
            ``work_dirs/{name of the config}``.
        cfg_options: Values that override the config's, see :func:`load_config`. Defaults to None.
        resume: Checkpoint to resume from; ``'auto'`` takes the latest of the work directory, if
            there is one. Defaults to None: the training starts as the config says.
        amp: Type for mixed precision: ``'float16'``, ``'bfloat16'``, or ``'auto'``, bfloat16 on the
            CPU and float16 elsewhere. Defaults to None: the precision that the config says.
        channels_last: Whether to add :class:`ChannelsLastHook`. Defaults to False.
        compile: Whether to add :class:`CompileHook`. Defaults to False.
        no_validate: Whether to train without evaluations. Defaults to False.
        data_faults: ``'stop'`` at a file that cannot be used, or ``'skip'`` it. Defaults to
            ``'stop'``.
        launcher: How several processes were started: ``'none'`` (the default), ``'pytorch'``,
            ``'slurm'`` or ``'mpi'``.

    Returns:
        The config.

    Raises:
        ConfigError: The config cannot be meant as it is, or an option does not fit it.
        DataError: The data cannot be used.
        FileNotFoundError: The config, the checkpoint or the data do not exist.
    """
    cfg = load_config(config, cfg_options=cfg_options, work_dir=work_dir)
    cfg.launcher = launcher
    if no_validate:
        for key in ('val_cfg', 'val_dataloader', 'val_evaluator'):
            cfg.pop(key, None)
    file = find_latest_checkpoint(cfg.work_dir) if resume == 'auto' else resume
    if file is not None:
        require_file(file)
        cfg.resume, cfg.load_from = True, file
    if amp is not None:
        _mix_precision(cfg, amp)
    hooks = [hook.get('type') for hook in cfg.setdefault('custom_hooks', [])]
    for hook, wanted in (('ChannelsLastHook', channels_last), ('CompileHook', compile)):
        if wanted and hook not in hooks:
            cfg.custom_hooks.append(dict(type=hook))
    splits = ('train',) if no_validate else ('train', 'val')
    check_data(cfg, splits=splits, data_faults=data_faults)
    return cfg


def _mix_precision(cfg: Config, dtype: str) -> None:
    """Choose the optimizer wrapper that trains in a precision; ``'auto'`` asks the device."""
    device = get_device()
    if dtype == 'float16' and device == 'cpu':
        raise ConfigError('--amp float16 needs an accelerator; on the CPU use --amp bfloat16.')
    choices = dict(float16='AmpOptimWrapper', bfloat16='BFloat16OptimWrapper')
    wrapper = cfg.optim_wrapper
    if wrapper.get('type', 'OptimWrapper') not in ('OptimWrapper', *choices.values()):
        raise ConfigError(
            f'--amp replaces OptimWrapper, but the config has optim_wrapper.type={wrapper.type!r}; '
            'set mixed precision in the config.'
        )
    wrapper.type = choices[half_precision(device) if dtype == 'auto' else dtype]
    for key in ('dtype', 'loss_scale', 'use_fsdp'):  # of a wrapper that the config has chosen
        wrapper.pop(key, None)
