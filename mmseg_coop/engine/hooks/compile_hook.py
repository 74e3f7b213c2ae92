"""Compiles the networks of a model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import nn
from typing_extensions import override

from ...errors import ConfigError, printable
from ..resume import model_of


def networks(module: nn.Module, prefix: str = '') -> Iterator[tuple[str, nn.Module]]:
    """Name the parts of a model that are called as one: backbone, neck and heads.

    Args:
        module: The model.
        prefix: What stands before the names. Defaults to ``''``.

    Yields:
        Name and part.
    """
    for name, part in module.named_children():
        if isinstance(part, nn.ModuleList):
            yield from networks(part, f'{prefix}{name}.')
        elif not isinstance(part, BaseDataPreprocessor):
            yield f'{prefix}{name}', part


def check_compiler(who: str, device: torch.device, **options: Any) -> None:
    """Compile what is quickly compiled, so that a compiler that is missing is said at once.

    Args:
        who: Who compiles, for the message.
        device: Where it runs.
        **options: Arguments of ``torch.compile``.

    Raises:
        ConfigError: Nothing can be compiled on this machine, or an option is wrong.
    """
    try:
        torch.compile(lambda x: x.sin() + 1, **options)(torch.ones(8, device=device))
    except Exception as error:
        cause = getattr(error, 'inner_exception', error)  # of what compiles the graph
        said = str(cause).strip().partition('\n')[0][:300].rstrip('.')
        raise ConfigError(
            f'{who}: torch.compile fails on {device}: {printable(said)}. '
            'It needs a C++ compiler such as g++, and Triton on GPUs; or leave it out.'
        ) from error


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles the forward and backward pass of a model's networks with ``torch.compile``.

    Backbone, neck and heads of any model become a graph each, which all batches of one size share.
    What surrounds them stays as it is: labels and losses, the optimizer, and evaluations, whose
    images have many sizes. (mmengine's key ``compile=True`` compiles the whole step, which depends
    on the images' paths and the learning rate, and so compiles anew for almost every batch.)

    The first step, which compiles, is announced with the time that it took.

    Args:
        **options: Arguments of ``torch.compile``, such as ``mode='max-autotune'``.

    Raises:
        ConfigError: Nothing can be compiled on this machine, or an option is wrong.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self._start: float | None = None
        self._is_announced = False

    @override
    def before_train(self, runner: Runner) -> None:
        model = model_of(runner)
        device = next(model.parameters()).device
        check_compiler('--compile (CompileHook)', device, **self.options)
        self._compiled = dict(networks(model))
        for part in self._compiled.values():
            self._compile(part)
        self._say(runner, f'The first step compiles {" and ".join(self._compiled)}; it takes long.')

    def _compile(self, part: nn.Module) -> None:
        plain = part.forward
        compiled = torch.compile(plain, **self.options)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (compiled if part.training else plain)(*args, **kwargs)

        part.forward = forward

    @override
    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self._start is None:
            self._start = time.perf_counter()

    @override
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self._start is not None and not self._is_announced:
            self._is_announced = True
            self._say(runner, f'The first step took {time.perf_counter() - self._start:.1f} s.')

    @override
    def after_train(self, runner: Runner) -> None:
        for part in self._compiled.values():
            del part.forward  # of the object; that of its class remains

    def _say(self, runner: Runner, text: str) -> None:
        runner.logger.info(text, extra=dict(on_console=True))
