"""The decode head of DPANet: spatial and channel pool attention side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.registry import MODELS
from mmseg.utils import SampleList, add_prefix
from torch import Tensor, nn

from ..attentions import ChannelPoolAttention, SpatialPoolAttention
from ..attentions._common import check_choice
from ..cooperation import Steps
from .coop_head import SteppedDecodeHead

#: The outputs, each with a classifier and a loss: both branches together, and either alone.
OUTPUTS = ('fused', 'spa', 'cpa')


@MODELS.register_module()
class DPAHead(SteppedDecodeHead):
    """Decode head of `DPANet <https://arxiv.org/abs/2210.05437>`_ (figure 2).

    Two branches, :class:`SpatialPoolAttention` and :class:`ChannelPoolAttention`, each between two
    3x3 convolutions as in DANet, are joined and classified. Every branch has a classifier of its
    own for the "multi-loss on the final outputs" (section 4.1.2). The branches' classifiers run in
    training mode only.

    Networks cooperate at the sites ``backbone`` (the head's input), ``attention_input`` (after the
    first convolution of each branch), ``attention`` (after each attention) and ``attention_output``
    (after the second convolution of each branch), the spatial branch before the channel branch.

    Args:
        in_channels: Channels of the backbone's output.
        channels: Channels of each branch. Defaults to 512.
        attention_width: ``'reduced'``: the first convolution reduces ``in_channels`` to
            ``channels``. ``'backbone'``: there is none, and the attentions work on the backbone's
            output itself, at the width of table 1. Defaults to ``'reduced'``.
        fusion: How the branches are joined: ``'concat'``, as the caption of figure 2 says, or
            ``'sum'``, as in DANet. Defaults to ``'concat'``.
        key_sizes: See :class:`SpatialPoolAttention`. Defaults to (1, 4, 8, 10, 12).
        value_sizes: See :class:`SpatialPoolAttention`. Defaults to (1, 5, 7, 9, 13).
        qkv: See :class:`SpatialPoolAttention`. Defaults to ``'identity'``.
        query_channels: See :class:`SpatialPoolAttention`. Defaults to None.
        pooling: See :class:`SpatialPoolAttention`. Defaults to ``'avg'``.
        scaled: See :class:`SpatialPoolAttention`. Defaults to False.
        similarity: See :class:`ChannelPoolAttention`. Defaults to ``'subtract'``.
        loss_weights: Weights of the losses of ``fused``, ``spa`` and ``cpa``; one that is left out
            weighs 1. A branch of weight 0 gets no classifier: with
            ``dict(spa=0, cpa=0)`` the head has the fused loss only, to go with an auxiliary head
            such as mmseg's ``FCNHead``. Defaults to None: 1 each.
        norm_cfg: Normalisation of the convolutions, None for none. Defaults to
            ``dict(type='BN')``.
        init_cfg: Initialisation. Defaults to None: a normal distribution of standard deviation
            0.01 for the classifiers, as in mmseg's heads.
        **kwargs: Further arguments of mmseg's ``BaseDecodeHead``, ``num_classes`` above all.

    Raises:
        ValueError: Unknown option, bad pool sizes, a negative weight, or no weight for the fused
            output.

    Example:
        >>> import torch
        >>> head = DPAHead(in_channels=64, channels=16, num_classes=19).eval()
        >>> head([torch.rand(1, 64, 24, 24)]).shape
        torch.Size([1, 19, 24, 24])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int = 512,
        attention_width: str = 'reduced',
        fusion: str = 'concat',
        key_sizes: Sequence[int] = (1, 4, 8, 10, 12),
        value_sizes: Sequence[int] = (1, 5, 7, 9, 13),
        qkv: str = 'identity',
        query_channels: int | None = None,
        pooling: str = 'avg',
        scaled: bool = False,
        similarity: str = 'subtract',
        loss_weights: Mapping[str, float] | None = None,
        norm_cfg: dict[str, Any] | None = dict(type='BN'),  # noqa: B006  # never changed
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice('attention_width', attention_width, ('reduced', 'backbone'))
        check_choice('fusion', fusion, ('concat', 'sum'))
        if kwargs.get('input_transform') is not None:
            raise ValueError(
                f'input_transform={kwargs["input_transform"]!r} asks for several levels of the '
                'feature pyramid, but DPAHead takes one; leave it out and choose in_index.'
            )
        loss_weights = _complete_weights(loss_weights or {})
        outputs = [name for name in OUTPUTS if loss_weights[name] > 0]
        classifiers = ['conv_seg', *(f'{name}_seg' for name in outputs if name != 'fused')]
        super().__init__(
            in_channels=in_channels,
            channels=channels,
            norm_cfg=norm_cfg,
            init_cfg=init_cfg
            or dict(type='Normal', std=0.01, override=[dict(name=name) for name in classifiers]),
            **kwargs,
        )
        self.attention_width = attention_width
        self.fusion = fusion
        self.loss_weights = {name: loss_weights[name] for name in outputs}
        width = channels if attention_width == 'reduced' else in_channels
        for branch in ('spa', 'cpa'):
            if attention_width == 'reduced':
                self.add_module(f'{branch}_in', self._convolution(in_channels))
            self.add_module(f'{branch}_out', self._convolution(width))
            if branch in outputs:
                self.add_module(f'{branch}_seg', nn.Conv2d(channels, self.out_channels, 1))
        self.spa = SpatialPoolAttention(
            in_channels=width,
            key_sizes=key_sizes,
            value_sizes=value_sizes,
            qkv=qkv,
            query_channels=query_channels,
            pooling=pooling,
            scaled=scaled,
        )
        self.cpa = ChannelPoolAttention(in_channels=width, similarity=similarity)
        if fusion == 'concat':  # mmseg's classifier takes `channels`, and here come two branches
            self.conv_seg = nn.Conv2d(2 * channels, self.out_channels, 1)
