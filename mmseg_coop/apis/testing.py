"""Evaluates a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from typing_extensions import override

from ..config import config_errors, forget_pretrained, load_config
from ..datasets.faults.walk import iter_datasets
from ..errors import ConfigError
from .console import Console
from .label_maps import prepare_data
from .launch import build_runner
from .model import refuse_existing, require_file
from .optimize import optimize_for_inference


def test(
    config: str,
    checkpoint: str,
    *,
    local_rank: int = 0,
    optimize: bool = False,
    dtype: str | None = None,
    **options: Any,
) -> dict[str, float]:
    """Evaluate a checkpoint: every network's output and their ensemble in one pass.

    Args:
        config: Config file.
        checkpoint: Checkpoint: a file, or an address that mmengine reads.
        local_rank: Number of this process on its machine, where the launcher does not note it in
            the environment. Defaults to 0.
        optimize: Whether to fold batch norms and lay out memory as NHWC, see
            :func:`optimize_for_inference`. Defaults to False.
        dtype: What to compute in, see there. Defaults to None: float32.
        **options: As of :func:`prepare_test`.

    Returns:
        The figures by name, such as ``'top/mIoU'`` in percent.

    Raises:
        CoopError: The config, the data or the checkpoint are at fault.
        OSError: A file does not exist, or cannot be read or written.
    """
    cfg = prepare_test(config, checkpoint, **options)
    with Console() as console:
        runner = build_runner(cfg, local_rank, console)
        if optimize or dtype:
            runner.register_hook(
                OptimizeHook(console, fuse=optimize, channels_last=optimize, dtype=dtype)
            )
        with config_errors(cfg):
            return dict(runner.test())


def prepare_test(
    config: str,
    checkpoint: str,
    *,
    work_dir: str | None = None,
    cfg_options: Mapping[str, Any] | Sequence[str] | None = None,
    output: str | None = None,
    out: str | None = None,
    palette: bool = False,
    force: bool = False,
    show_dir: str | None = None,
    show: bool = False,
    wait_time: float = 2,
    tta: bool = False,
    data_faults: str = 'stop',
    launcher: str = 'none',
) -> Config:
    """Settle the config of a test and check its data.

    Args:
        config: Config file.
        checkpoint: Checkpoint: a file, or an address that mmengine reads.
        work_dir: Where the run writes. Defaults to None: the config's, or else
            ``work_dirs/{name of the config}``.
        cfg_options: Values that override the config's, see :func:`load_config`. Defaults to None.
        output: Which output is the prediction: a network's name or ``'ensemble'``; ``'all'`` keeps
            the config's and lets ``out`` write every one. Defaults to None: the config's.
        out: Folder for the label maps of whole images, as PNG. Defaults to None: none are written.
        palette: Whether these are palette PNGs in the dataset's colours. Defaults to False.
        force: Whether they may replace others. Defaults to False.
        show_dir: Folder for images of input, ground truth and outputs side by side. Defaults to
            None.
        show: Whether to show these in a window. Defaults to False.
        wait_time: Seconds an image is shown. Defaults to 2.
        tta: Whether to average over the augmentations of ``tta_pipeline``. Defaults to False.
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
        FileExistsError: There are label maps in the folder already.
    """
    if out:
        refuse_existing(next(Path(out).rglob('*.png'), None), force=force)
    cfg = load_config(config, cfg_options=cfg_options, work_dir=work_dir)
    cfg.launcher = launcher
    require_file(checkpoint)
    cfg.load_from = checkpoint
    # The checkpoint brings all weights: pretrained ones need not be there.
    forget_pretrained(cfg.model)
    if output not in (None, 'all'):
        cfg.model.setdefault('test_cfg', {})['output'] = output
    if tta:
        if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
            raise ConfigError(f'--tta needs tta_pipeline and tta_model, which {config} lacks.')
        for dataset in iter_datasets(cfg.test_dataloader.dataset):
            dataset.pipeline = cfg.tta_pipeline
    prepare_data(cfg, out=out, output=output, palette=palette, data_faults=data_faults)
    # A test needs no training data; mmseg 1.2 would build them to number its images.
    for key in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler'):
        cfg.pop(key, None)
    # Nor what averages the weights: those of a checkpoint are averaged.
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [hook for hook in hooks if hook['type'] != 'EMAHook']
    if show or show_dir:
        hook = cfg.default_hooks.setdefault('visualization', dict(type='SegVisualizationHook'))
        # mmseg 1.2 draws every 50th image unless told otherwise.
        hook.update(draw=True, interval=1, show=show, wait_time=wait_time)
        if show_dir:
            cfg.visualizer.save_dir = show_dir
    if tta:
        cfg.model = dict(**cfg.tta_model, module=cfg.model)
    return cfg


class OptimizeHook(Hook):
    """Optimises the model of a test once its weights are loaded, and says what was done."""

    def __init__(self, console: Console, **options: Any) -> None:
        self.console = console
        self.options = options

    @override
    def before_test_epoch(self, runner: Runner) -> None:
        model = runner.model.eval()
        while hasattr(model, 'module'):  # what spreads it over processes, or averages augmentations
            model = model.module
        optimize_for_inference(model, **self.options)
        runner.logger.info(f'optimized: {model.optimized}')
        if is_main_process():
            self.console.facts(dict(optimized=model.optimized))
