"""Trades time for the memory of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from ...errors import ConfigError
from ..resume import model_of
from .compile_hook import CompileHook


@HOOKS.register_module()
class ActivationCheckpointHook(Hook):
    """Keeps only the inputs of modules for the backward pass, which runs the modules again.

    Gradients and statistics of batch norm are those of a run without, bit by bit on the CPU.
    (mmengine's key ``activation_checkpointing`` updates the statistics twice, and trains nothing in
    a module whose input has no gradient, such as a whole backbone.)

    Args:
        modules: Their names in the model, such as ``'backbone.networks.top'``. What is between two
            of them is kept, so several smaller ones save more than one that holds them all.

    Raises:
        ConfigError: The networks are compiled.
    """

    def __init__(self, *, modules: Sequence[str]) -> None:
        self.modules = modules

    @override
    def before_train(self, runner: Runner) -> None:
        if any(isinstance(hook, CompileHook) for hook in runner.hooks):
            raise ConfigError(
                'ActivationCheckpointHook and CompileHook (--compile) do not work together, since '
                'compiled code cannot tell the second pass from the first; leave one of them out.'
            )
        model = model_of(runner)
        self._parts = [model.get_submodule(name) for name in self.modules]
        for part in self._parts:
            part.forward = _checkpointed(part.forward, part)

    @override
    def after_train(self, runner: Runner) -> None:
        for part in self._parts:
            del part.forward  # of the object; that of its class remains


def _checkpointed(forward: Callable[..., Any], part: nn.Module) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _no_statistics(part)

    return partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)


@contextmanager
def _no_statistics(part: nn.Module) -> Iterator[None]:
    """Leave the statistics of batch norm alone: they have seen the batch."""
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
