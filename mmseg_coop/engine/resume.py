"""What a run needs from a checkpoint to go on exactly, beyond what mmengine restores."""

from __future__ import annotations

import math
from typing import Any

from mmengine.dist import all_reduce_params
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from ..errors import CheckpointError, printable
from .weights import compare_weights


def model_of(runner: Runner) -> nn.Module:
    """Give the model without the wrapper that several processes need.

    Args:
        runner: The runner.

    Returns:
        The model.
    """
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def accumulation(runner: Runner) -> dict[str, Any] | None:
    """Collect the gradients between two steps of an optimizer that accumulates them.

    All processes have to call it: theirs are averaged, as the next step would do.

    Args:
        runner: The runner, after an iteration.

    Returns:
        ``counts``, the iterations of a step, and ``gradients`` by the parameter's name; None just
        after a step.
    """
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, OptimWrapper) or wrapper.should_update():
        return None
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model_of(runner).named_parameters()
        if parameter.grad is not None
    }
    all_reduce_params(list(gradients.values()), op='mean')
    gradients = {name: gradient.cpu() for name, gradient in gradients.items()}
    return dict(counts=wrapper._accumulative_counts, gradients=gradients)


def prepare_resume(runner: Runner, checkpoint: dict[str, Any], file: str) -> None:
    """Refuse a checkpoint from which the run would not go on exactly; restore its gradients.

    Args:
        runner: The runner, before it takes over weights and optimizer.
        checkpoint: The checkpoint, without its gradients afterwards.
        file: What errors call it.

    Raises:
        CheckpointError: A part is missing, or is of another model, optimizer or accumulation.
    """
    anew = f'start a new run from its weights with load_from={file}, without --resume'
    parts = ['meta', 'message_hub', 'optimizer']
    if runner.param_schedulers:
        parts.append('param_schedulers')
    missing = [part for part in parts if part not in checkpoint]
    if missing:
        raise CheckpointError(
            f'{file} holds no {" and no ".join(missing)}, so no run can go on from it; a best '
            f'checkpoint holds only weights. Resume from a numbered checkpoint, or {anew}.'
        )
    wrapper, model = runner.optim_wrapper, model_of(runner)
    if not isinstance(wrapper, OptimWrapper):
        return
    said = str(compare_weights(model, checkpoint['state_dict']))
    name = type(wrapper.optimizer).__name__
    former = checkpoint['optimizer'].get('type', name)
    if former != name:
        said = said or f'its optimizer is {former!r}, not {name!r}'
    if not said:
        try:
            wrapper.optimizer.load_state_dict(checkpoint['optimizer'])
        except ValueError as error:
            said = str(error).splitlines()[0].strip(' .')
    if said:
        raise CheckpointError(
            f'{file} does not fit the config: {printable(said[:300])}. Resume it with the model '
            f'and the optimizer that it was trained with, or {anew}.'
        )
    counts, iteration = wrapper._accumulative_counts, checkpoint['meta']['iter']
    stored = checkpoint.pop('accumulation', dict(counts=1, gradients={}))
    inside = iteration % counts and iteration < runner.max_iters
    if stored['counts'] != (counts if inside else 1):
        then = stored['counts']
        held = f'gradients for accumulative_counts={then}' if then > 1 else 'no such gradients'
        raise CheckpointError(
            f'optim_wrapper.accumulative_counts={counts} does not fit {file}: iteration '
            f'{iteration} is between two steps of the optimizer, and it holds {held}. Resume with '
            f'the number it was trained with, or at a multiple of {math.lcm(then, counts)}.'
        )
    for name, parameter in model.named_parameters():
        if name in stored['gradients']:
            parameter.grad = stored['gradients'][name].to(parameter.device)
    if inside:  # mmengine says that they are lost
        runner.logger.addFilter(lambda record: 'iterations is lost' not in record.getMessage())
