"""Finds what the parts of a run, each right alone, do not agree on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict, ReduceOnPlateauParamScheduler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from torch import nn

from ...errors import CheckpointError, ConfigError, did_you_mean, first_few, printable
from ...evaluation import CoopIoUMetric
from ...models._checks import check_losses, check_test_cfg
from ...models.decode_heads.plain_head import is_plain
from ...models.segmentors import CrossCoopEncoderDecoder
from ..weights import compare_weights

_PROPOSAL = ' (did you mean {!r}?)'


class RunCheckHook(Hook):
    """Compares the parts of a run when all are built, before weights are loaded.

    What cannot run is an error; what runs, but hardly as meant, a warning in the log.
    """

    priority = 'VERY_HIGH'  # the first evaluation is looked at before a checkpoint is written

    def before_run(self, runner: Runner) -> None:
        """Check the model, hooks, data loaders, metrics, schedules and learning rates.

        Args:
            runner: The runner.

        Raises:
            ConfigError: The model cannot train or predict as it is, see :func:`check_model`, an
                interval is 0, a loop over the whole data loader has an endless sampler,
                or the evaluation does not give what ``save_best`` or early stopping names.
            InputError: A head was built for other channels than its backbone has.
        """
        model = getattr(runner.model, 'module', runner.model)
        check_model(model)
        for hook in runner.hooks:
            if getattr(hook, 'interval', None) == 0:
                raise ConfigError(
                    f'interval of {type(hook).__name__} is 0; give a number from 1 on, or leave '
                    'the hook out.'
                )
        if isinstance(runner.optim_wrapper, OptimWrapper):
            _check_numbers(runner)
        for split in ('train', 'val', 'test'):
            _check_sampler(getattr(runner, f'_{split}_loop'), f'{split}_dataloader.sampler')
        if isinstance(runner._val_loop, ValLoop):
            outputs = getattr(model, 'output_names', ())
            metrics = [_metric_names(m, outputs) for m in runner._val_loop.evaluator.metrics]
            if None not in metrics:
                _check_chosen(runner, [name for names in metrics for name in names or ()])
        if isinstance(runner._train_loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
            if isinstance(model, CrossCoopEncoderDecoder):
                model.check_channels()
                if model.frozen and not (runner._load_from or runner._resume):
                    _check_frozen(model)
            _check_schedules(runner, runner._train_loop)
            _check_custom_keys(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare a checkpoint's weights with the model, before it takes over those that fit.

        Args:
            runner: The runner.
            checkpoint: What was loaded.

        Raises:
            CheckpointError: None fit, or a test lacks some.
        """
        if runner._resume:  # prepare_resume compares the optimizer as well
            return
        weights = checkpoint.get('state_dict', checkpoint)
        _check_weights(runner, {re.sub(r'^module\.', '', name): weights[name] for name in weights})

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Look at the sizes of a batch.

        Args:
            runner: The runner.
            batch_idx: Not used; part of mmengine's interface.
            data_batch: The batch.

        Raises:
            ConfigError: The images have several sizes, and the model takes one a batch.
        """
        _check_sizes(runner.model, data_batch, 'val')

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Look at the sizes of a batch, see :meth:`before_val_iter`."""
        _check_sizes(runner.model, data_batch, 'test')

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Look for what ``save_best`` and early stopping name among the metrics.

        Args:
            runner: The runner.
            metrics: Metrics by name.

        Raises:
            ConfigError: It is not there.
        """
        if metrics:  # otherwise mmengine says that there are none
            _check_chosen(runner, list(metrics))


def check_model(model: nn.Module) -> None:
    """Check what mmseg's parts look at with the first image; ours have done so when built.

    Args:
        model: A model.

    Raises:
        ConfigError: A loss does not fit the outputs of its head, ``test_cfg`` is impossible, or the
            data preprocessor divides by zero. The message gives the path.
    """
    std = getattr(getattr(model, 'data_preprocessor', None), 'std', None)
    if isinstance(std, torch.Tensor) and not std.all():
        raise ConfigError(
            f'model.data_preprocessor.std is {std.flatten().tolist()}; it divides, so give no zero.'
        )
    place = 'model.'
    try:
        if getattr(type(model), 'inference', None) is EncoderDecoder.inference:
            check_test_cfg(getattr(model, 'test_cfg', None) or {})
        for name, head in model.named_modules():
            if is_plain(type(head)):
                place = f'model.{name}: '
                check_losses(head)
    except ValueError as error:
        raise ConfigError(f'{place}{error}') from error


def _check_numbers(runner: Runner) -> None:
    """Refuse numbers with which mmengine and torch train without a word, but not as meant."""
    for name in ('max_epochs', 'max_iters', 'val_interval'):
        value = getattr(runner._train_loop, name, 1)
        if not isinstance(value, (int, float)) or value < 1:
            raise ConfigError(f'train_cfg.{name} is {value}; give a number from 1 on.')
    wrapper = runner.optim_wrapper
    for group in [] if isinstance(wrapper, OptimWrapperDict) else wrapper.param_groups:
        for name in ('lr', 'weight_decay'):
            if group.get(name, 0) < 0:
                raise ConfigError(
                    f'optim_wrapper.optimizer and optim_wrapper.paramwise_cfg give a {name} of '
                    f'{group[name]}; give numbers from 0 on.'
                )


def _check_frozen(model: CrossCoopEncoderDecoder) -> None:
    """Refuse frozen networks that no ``init_cfg`` gives weights either."""
    parts = (model, *model.decode_head.modules())
    if 'Pretrained' not in str([getattr(part, 'init_cfg', None) for part in parts]):
        raise ConfigError(
            f'model.frozen={list(model.frozen)} is not trained, and nothing gives its weights; set '
            'load_from to a checkpoint that has them.'
        )


def _check_weights(runner: Runner, weights: Mapping[str, Any]) -> None:
    model = runner.model
    while hasattr(model, 'module'):  # what spreads it over processes, or averages augmentations
        model = model.module
    reshaped, missing, unknown = compare_weights(model, weights)
    # older versions of PyTorch have no num_batches_tracked
    lacking = [*reshaped, *(name for name in missing if not name.endswith('num_batches_tracked'))]
    count = len(model.state_dict())
    said = printable(
        f'{runner._load_from} does not fit {type(model).__name__}: of {count} tensors '
        f'{len(lacking)} are missing or of another shape ({first_few(lacking)})'
    )
    if lacking and (runner._train_loop is None or len(unknown) == len(weights)):
        raise CheckpointError(
            f'{said}; use the config it was trained with, or give weights of a backbone alone to '
            "its init_cfg=dict(type='Pretrained', …)."
        )
    if isinstance(model, CrossCoopEncoderDecoder) and model.frozen:
        frozen = {id(each) for part in model.parts_of(model.frozen) for each in part.parameters()}
        named = model.named_parameters()
        if any(id(weight) in frozen and name in lacking for name, weight in named):
            raise CheckpointError(
                f'{said}, and frozen={list(model.frozen)} is not trained; give load_from a '
                'checkpoint with these networks.'
            )
    if lacking:
        runner.logger.warning(f'{said}; they start as they were initialised.')
    if unknown:
        runner.logger.warning(
            printable(
                f'{runner._load_from} also holds what {type(model).__name__} does not have, which '
                f'is left out: {first_few(sorted(unknown))}.'
            )
        )


def _check_sizes(model: Any, batch: Any, split: str) -> None:
    model = getattr(model, 'module', model)
    if isinstance(model, CrossCoopEncoderDecoder) or not isinstance(
        getattr(model, 'data_preprocessor', None), SegDataPreProcessor
    ):
        return
    images = [image for image in batch['inputs'] if isinstance(image, torch.Tensor)]
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) > 1:
        raise ConfigError(
            f'{split}_dataloader.batch_size is {len(images)}, but images of a batch have several '
            f'sizes, {" and ".join("x".join(map(str, size)) for size in sizes[:2])}, and '
            f'{type(model).__name__} takes one a batch; set {split}_dataloader.batch_size=1.'
        )


def _metric_names(metric: BaseMetric, outputs: tuple[str, ...]) -> list[str] | None:
    """Names of what a metric gives; None if only an evaluation can tell."""
    if type(metric) not in (IoUMetric, CoopIoUMetric) or metric.format_only:
        return None
    values = metric.total_area_to_metrics(*[torch.ones(1)] * 4, metric.metrics)
    names = [name if name == 'aAcc' else f'm{name}' for name in values]
    if isinstance(metric, CoopIoUMetric):
        names += [f'{output}/{name}' for output in outputs for name in names]
    return [f'{metric.prefix}/{name}' if metric.prefix else name for name in names]


def _check_chosen(runner: Runner, names: list[str]) -> None:
    """Compare what hooks want of an evaluation with what it gives."""
    for hook in runner.hooks:
        wanted: dict[str, Any] = {}
        if isinstance(hook, CheckpointHook) and hook.save_best:
            wanted = {key: 'save_best' for key in hook.key_indicators if key != 'auto'}
        elif isinstance(hook, EarlyStoppingHook):
            wanted = {hook.monitor: 'monitor'}
        for key, option in wanted.items():
            if key not in names:
                choices = ', '.join(names) or 'none: val_evaluator is empty'
                raise ConfigError(
                    f'{option}={key!r} of {type(hook).__name__} is no metric of the evaluation'
                    f'{did_you_mean(key, names, _PROPOSAL)}; choose among {choices}.'
                )


def _check_sampler(loop: Any, path: str) -> None:
    if not isinstance(loop, (EpochBasedTrainLoop, ValLoop, TestLoop)):
        return
    batches = getattr(loop.dataloader, 'batch_sampler', None)
    if isinstance(getattr(batches, 'sampler', None), InfiniteSampler):
        raise ConfigError(
            f'{path} is InfiniteSampler, which has no end, but {type(loop).__name__} goes through '
            "all of it; use sampler=dict(type='DefaultSampler', …), or for training a loop that "
            'counts iterations.'
        )


def _check_schedules(runner: Runner, loop: EpochBasedTrainLoop | IterBasedTrainLoop) -> None:
    schedulers = runner.param_schedulers or []
    for group in schedulers.values() if isinstance(schedulers, Mapping) else [schedulers]:
        rates = [scheduler for scheduler in group if scheduler.param_name == 'lr']
        for rate in rates:
            by_evaluation = isinstance(rate, ReduceOnPlateauParamScheduler)
            if rate.by_epoch and not by_evaluation and isinstance(loop, IterBasedTrainLoop):
                runner.logger.warning(
                    f'param_scheduler has {type(rate).__name__} with by_epoch=True, but '
                    f'{type(loop).__name__} counts iterations: it changes nothing. Set '
                    'by_epoch=False.'
                )
        limits = [loop.max_epochs if rate.by_epoch else loop.max_iters for rate in rates]
        if rates and all(rate.end < limit for rate, limit in zip(rates, limits, strict=True)):
            runner.logger.warning(
                f'param_scheduler ends at {rates[-1].end}, the training at {limits[-1]} '
                f'({"epochs" if rates[-1].by_epoch else "iterations"}): in between the learning '
                'rate stays as it is. If that is not meant, set end of the last scheduler.'
            )


def _check_custom_keys(runner: Runner) -> None:
    wrapper = runner.cfg.get('optim_wrapper')
    if not isinstance(wrapper, Mapping) or 'constructor' in wrapper:  # which may read them its way
        return
    names = [name for name, _ in runner.model.named_parameters()]
    unused = []
    for key in (wrapper.get('paramwise_cfg') or {}).get('custom_keys') or ():
        if not any(key in name for name in names):
            length = key.count('.') + 1
            parts = {
                '.'.join(words[start : start + length])
                for words in (name.split('.') for name in names)
                for start in range(len(words) - length + 1)
            }
            unused.append(f'{key!r}{did_you_mean(key, parts, _PROPOSAL)}')
    if unused:  # configs for several models have keys that only some of them need
        runner.logger.warning(
            'optim_wrapper.paramwise_cfg.custom_keys has keys that are in the name of no '
            f'parameter, hence without effect: {", ".join(unused)}.'
        )
