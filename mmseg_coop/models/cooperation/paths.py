"""Who sends to whom at one point of the networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleDict
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

TOPOLOGIES = ('none', 'one_way', 'cross')


def resolve_topology(
    topology: str | Mapping[str, Sequence[str]], names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Translate a topology into the senders of every receiving network.

    Args:
        topology: ``'none'``, ``'one_way'`` (every network sends to all that are named after it;
            the conventional method of the paper, top to bottom), ``'cross'`` (every network sends
            to all others; the paper's proposal), or a mapping from a receiver to its senders.
        names: The networks, in order.

    Returns:
        Senders by receiver. Networks that receive nothing are left out.

    Raises:
        ValueError: The topology or a network in it is unknown, or a network sends to itself.

    Example:
        >>> resolve_topology('one_way', ['top', 'bottom'])
        {'bottom': ('top',)}
        >>> resolve_topology({'top': ['bottom']}, ['top', 'bottom'])
        {'top': ('bottom',)}
    """
    if isinstance(topology, Mapping):
        for receiver, senders in topology.items():
            unknown = [name for name in (receiver, *senders) if name not in names]
            if unknown:
                raise ValueError(
                    f'topology names the unknown network {unknown[0]!r}; the networks are '
                    f'{list(names)}.'
                )
            if receiver in senders:
                raise ValueError(f'topology lets the network {receiver!r} send to itself.')
        return {receiver: tuple(senders) for receiver, senders in topology.items() if senders}
    if topology == 'none':
        senders_of: dict[str, tuple[str, ...]] = {}
    elif topology == 'one_way':
        senders_of = {name: tuple(names[:index]) for index, name in enumerate(names)}
    elif topology == 'cross':
        senders_of = {name: tuple(other for other in names if other != name) for name in names}
    else:
        raise ValueError(
            f'topology={topology!r} is unknown; choose one of {list(TOPOLOGIES)} or give a mapping '
            'from every receiving network to its senders.'
        )
    return {receiver: senders for receiver, senders in senders_of.items() if senders}


def _build_fusion(fusion: dict[str, Any], **interface: Any) -> BaseModule:
    """Build a fusion from its config and from what the paths know and every fusion takes."""
    if 'type' not in fusion:
        raise ValueError(
            f"fusion={fusion!r} has no type; give one, such as dict(type='SumFusion')."
        )
    if isinstance(fusion['type'], str) and MODELS.get(fusion['type']) is None:
        raise ValueError(
            f'fusion type={fusion["type"]!r} is unknown; use SumFusion, ConcatFusion, GatedFusion '
            'or register your own with mmseg.registry.MODELS.'
        )
    return MODELS.build({**interface, **fusion})


class CooperativePaths(BaseModule):
    """The cooperative paths between all networks at one point ("cross cooperative connection").

    The exchange is simultaneous: every network receives what the others held *before* it.
    Networks that differ in channels are matched by a 1x1 convolution with normalisation, networks
    that differ in stride by bilinear interpolation, each only where it is needed.

    Source: Ikedo and Hotta, VISAPP 2022, section 3.3, figures 1 (one way) and 4 (cross).

    Args:
        channels: Channels of every network's map at this point, by network name.
        topology: See :func:`resolve_topology`. Defaults to ``'cross'``.
        fusion: How a receiver merges. Defaults to ``dict(type='SumFusion')``.
        detach: Cut the gradient through the paths, so that each network learns from its own loss
            only. Defaults to False.
        norm_cfg: Normalisation of the matching convolutions and the fusion. Defaults to
            ``dict(type='BN')``.
        act_cfg: Activation of the fusion. Defaults to ``dict(type='ReLU')``.
        align_corners: Passed to the interpolation. Defaults to False.
        init_cfg: Initialisation of the parameters. Defaults to None.

    Raises:
        ValueError: Unknown topology, network or fusion.

    Example:
        >>> import torch
        >>> paths = CooperativePaths(channels=dict(top=2, bottom=2), topology='one_way')
        >>> top, bottom = torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3)
        >>> merged = paths(dict(top=top, bottom=bottom))
        >>> float(merged['top'].max()), float(merged['bottom'].max())
        (1.0, 2.0)
    """

    def __init__(
        self,
        *,
        channels: Mapping[str, int],
        topology: str | Mapping[str, Sequence[str]] = 'cross',
        fusion: dict[str, Any] | None = None,
        detach: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
        align_corners: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        norm_cfg = norm_cfg or dict(type='BN')
        act_cfg = act_cfg or dict(type='ReLU')
        self.detach = detach
        self.align_corners = align_corners
        self.senders_of = resolve_topology(topology, list(channels))
        self.matchers = ModuleDict()
        self.fusions = ModuleDict()
        for receiver, senders in self.senders_of.items():
            for sender in senders:
                if channels[sender] != channels[receiver]:
                    self.matchers[self._path(sender, receiver)] = ConvModule(
                        channels[sender], channels[receiver], 1, norm_cfg=norm_cfg, act_cfg=None
                    )
            self.fusions[receiver] = _build_fusion(
                fusion or dict(type='SumFusion'),
                channels=channels[receiver],
                num_received=len(senders),
                norm_cfg=norm_cfg,
                act_cfg=act_cfg,
            )

    @staticmethod
    def _path(sender: str, receiver: str) -> str:
        return f'{sender}_to_{receiver}'

    def parts_of(self, receiver: str) -> list[nn.Module]:
        """Matching convolutions and fusion of a network; none of one that receives nothing."""
        if receiver not in self.senders_of:
            return []
        paths = [self._path(sender, receiver) for sender in self.senders_of[receiver]]
        matchers = [self.matchers[path] for path in paths if path in self.matchers]
        return [*matchers, self.fusions[receiver]]

    def _receive(self, sender: str, receiver: str, features: Mapping[str, Tensor]) -> Tensor:
        """What arrives at the receiver, in the receiver's channels and size."""
        feature, own = features[sender], features[receiver]
        if self.detach:
            feature = feature.detach()
        path = self._path(sender, receiver)
        if path in self.matchers:
            feature = self.matchers[path](feature)
        if feature.shape[2:] != own.shape[2:]:
            feature = resize(
                feature, size=own.shape[2:], mode='bilinear', align_corners=self.align_corners
            )
        return feature

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exchange.

        Args:
            features: Every network's map before the exchange, ``(N, C, H, W)``; C, H and W may
                differ.

        Returns:
            Every network's map after the exchange, same shapes.
        """
        merged = dict(features)
        for receiver, senders in self.senders_of.items():
            received = [self._receive(sender, receiver, features) for sender in senders]
            merged[receiver] = self.fusions[receiver](features[receiver], received)
        return merged
