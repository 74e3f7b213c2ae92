"""How a network merges the feature maps it receives with its own.

The paper draws the cooperative paths but does not say what happens where they end, so every fusion
shares one interface and the configuration chooses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from typing_extensions import override


class Fusion(BaseModule):
    """What every fusion is told and has to do.

    Args:
        channels: Channels C of every map.
        num_received: How many maps arrive.
        norm_cfg: Normalisation layer. Defaults to ``dict(type='BN')``.
        act_cfg: Activation layer. Defaults to ``dict(type='ReLU')``.
        init_cfg: Initialisation of the parameters. Defaults to None.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_received: int,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.channels = channels
        self.num_received = num_received
        self.norm_cfg = norm_cfg or dict(type='BN')
        self.act_cfg = act_cfg or dict(type='ReLU')

    @abstractmethod
    def forward(self, own: Tensor, received: Sequence[Tensor]) -> Tensor:
        """Merge.

        Args:
            own: The receiver's map, ``(N, C, H, W)``.
            received: The maps that arrived, each ``(N, C, H, W)``.

        Returns:
            The merged map, ``(N, C, H, W)``.
        """


@MODELS.register_module()
class SumFusion(Fusion):
    """Element-wise sum of the own and the received feature maps, without parameters.

    After a symmetric sum of two networks both hold the same map, which agrees with the nearly equal
    top and bottom rows of Table 1 (81.5 and 81.3). Its arguments are those of :class:`Fusion`.
    """

    @override
    def forward(self, own: Tensor, received: Sequence[Tensor]) -> Tensor:
        for feature in received:
            own = own + feature
        return own


@MODELS.register_module()
class ConcatFusion(Fusion):
    """Concatenation, reduced to the receiver's channels by a 1x1 convolution, norm and activation.

    Its arguments are those of :class:`Fusion`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reduce = ConvModule(
            self.channels * (1 + self.num_received),
            self.channels,
            1,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )

    @override
    def forward(self, own: Tensor, received: Sequence[Tensor]) -> Tensor:
        return self.reduce(torch.cat([own, *received], dim=1))


@MODELS.register_module()
class GatedFusion(Fusion):
    """Sum in which the receiver weighs every received map, per pixel and channel.

    ``own + sum_k sigmoid(W_k [own; received_k] + b_k) * received_k``: the receiver decides from
    both maps how much of the other network's view it takes. ``W_k`` is a 1x1 convolution. Its
    arguments are those of :class:`Fusion`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gates = nn.ModuleList(
            nn.Conv2d(2 * self.channels, self.channels, 1) for _ in range(self.num_received)
        )

    @override
    def forward(self, own: Tensor, received: Sequence[Tensor]) -> Tensor:
        merged = own
        for gate, feature in zip(self.gates, received, strict=True):
            merged = merged + gate(torch.cat([own, feature], dim=1)).sigmoid() * feature
        return merged
