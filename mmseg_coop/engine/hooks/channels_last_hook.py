"""Lays the memory of a model out as its convolutions like it best."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from typing_extensions import override

from ..resume import model_of


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Lays weights out with the channels last in memory (NHWC), which images and maps then follow.

    Shapes and values stay as they are, convolutions become faster: on the CPU, and on GPUs with
    Tensor Cores in half precision. It serves any model, in training, evaluation and test.
    Checkpoints fit runs with and without it, and a run that goes on with it is as exact as without;
    dropout, though, draws its numbers in the order of the memory.
    """

    priority = 'VERY_HIGH'

    @override
    def before_train(self, runner: Runner) -> None:
        # Not earlier, since random initial weights are drawn in the order of the memory as well.
        model = model_of(runner).to(memory_format=torch.channels_last)
        if runner.model is not model:
            # DistributedDataParallel has laid its buckets out as the weights were.
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)

    before_test = before_train
