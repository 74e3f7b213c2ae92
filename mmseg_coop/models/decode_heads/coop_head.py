"""What decode heads need in order to cooperate, and the head that lets them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule, ModuleDict
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import accuracy
from mmseg.models.utils import resize
from mmseg.utils import SampleList, add_prefix
from torch import Tensor

from .._checks import InputError, check_fraction, check_losses, check_positive
from ..cooperation import Cooperation, Steps, run_in_step

#: The name of the sum of all networks' outputs; no network may be called so.
ENSEMBLE = 'ensemble'


class SteppedDecodeHead(BaseDecodeHead):
    """A decode head that offers its feature maps layer by layer.

    Subclasses write their forward pass once, as :meth:`steps`; alone they are ordinary heads of
    mmseg, and :class:`BaseCoopHead` runs several in step.

    Args:
        in_channels: Channels of the backbone's output.
        channels: Channels of the layers.
        num_classes: Number of classes.
        in_index: Level of the backbone's output in the feature pyramid. Defaults to -1.
        dropout_ratio: Share of what the dropout drops. Defaults to 0.1.
        ignore_index: Label that is ignored. Defaults to 255.
        align_corners: Passed to every interpolation. Defaults to False.
        **kwargs: Further arguments of mmseg's ``BaseDecodeHead``.

    Raises:
        ValueError: A number is out of its range, or a loss does not fit the outputs.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_classes: int,
        in_index: int = -1,
        dropout_ratio: float = 0.1,
        ignore_index: int = 255,
        align_corners: bool = False,
        **kwargs: Any,
    ) -> None:
        check_positive('in_channels', in_channels)
        check_positive('channels', channels)
        check_positive('num_classes', num_classes)
        check_fraction('dropout_ratio', dropout_ratio)
        if kwargs.get('loss_decode', True) in (None, [], ()):
            raise ValueError(f'loss_decode={kwargs["loss_decode"]!r} leaves nothing to train with.')
        super().__init__(
            in_channels=in_channels,
            channels=channels,
            num_classes=num_classes,
            in_index=in_index,
            dropout_ratio=dropout_ratio,
            ignore_index=ignore_index,
            align_corners=align_corners,
            **kwargs,
        )
        check_losses(self)

    @property
    @abstractmethod
    def site_channels(self) -> dict[str, tuple[int, ...]]:
        """Channels at every site, in the order in which :meth:`steps` yields there."""

    @property
    def input_channels(self) -> dict[int, int]:
        """Channels expected at each used index of the feature pyramid."""
        return {self.in_index: self.in_channels}

    @abstractmethod
    def steps(self, inputs: Sequence[Tensor]) -> Steps:
        """Run the head as a generator.

        Args:
            inputs: Feature pyramid, each ``(N, C_i, H_i, W_i)``.

        Yields:
            ``(site, feature)``; it is sent the feature map with which it goes on.

        Returns:
            The logits, ``(N, num_classes, H, W)``.
        """

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Run without partners.

        Args:
            inputs: Feature pyramid, each ``(N, C_i, H_i, W_i)``.

        Returns:
            The logits, ``(N, num_classes, H, W)``.
        """
        self.check_inputs(inputs)
        return run_in_step(dict(head=self.steps(inputs)))['head']

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses, and the share of pixels that are right.

        Args:
            seg_logits: ``(N, num_classes, H, W)``, or ``(N, 1, H, W)`` with ``out_channels=1``.
            batch_data_samples: Samples with ``gt_sem_seg``.

        Returns:
            Losses by name, and ``acc_seg``, in percent.
        """
        losses = super().loss_by_feat(seg_logits, batch_data_samples)
        if self.out_channels == 1:  # the largest of one logit, for mmseg, is always class 0
            labels = self._stack_batch_gt(batch_data_samples)
            logits = resize(
                seg_logits,
                size=labels.shape[2:],
                mode='bilinear',
                align_corners=self.align_corners,
            )
            probability = logits.detach().sigmoid()
            losses['acc_seg'] = accuracy(
                torch.cat([torch.full_like(probability, self.threshold), probability], dim=1),
                labels.squeeze(1),
                ignore_index=self.ignore_index,
            )
        return losses

    def check_inputs(self, inputs: Sequence[Tensor], network: str = '') -> None:
        """Compare the feature pyramid with what the head was built for.

        Args:
            inputs: Feature pyramid, each ``(N, C_i, H_i, W_i)``.
            network: Name of the network, for the message. Defaults to ''.

        Raises:
            ValueError: A level is missing or has other channels.
        """
        where = f' of network {network!r}' if network else ''
        pyramid = [feature.shape[1] for feature in inputs]
        for index, channels in self.input_channels.items():
            if not -len(inputs) <= index < len(inputs):
                raise InputError(
                    f'the decode head{where} takes level {index} of the feature pyramid, but the '
                    f'backbone returns {len(inputs)} levels; choose an index below that or extend '
                    "the backbone's out_indices."
                )
            if pyramid[index] != channels:
                raise InputError(
                    f'the decode head{where} was built for {channels} channels at level {index} of '
                    f'the feature pyramid, but the backbone returns {pyramid[index]} there (its '
                    f'levels have {pyramid} channels); change in_channels '
                    '(low_level_in_channels) or the index.'
                )


class BaseCoopHead(BaseModule):
    """Several decode heads, one a network, that exchange feature maps at their sites.

    Each network keeps its own classifier and its own loss; the total is their sum (equation 1).

    Args:
        networks: For every network, by name and in order (the first is the paper's "top"), the
            arguments of its head that differ from those of the others, ``in_channels`` above all.
        num_classes: Number of classes.
        topology: Who sends to whom: ``'none'``, ``'one_way'`` (each network to those after it),
            ``'cross'`` (each to all others), or a mapping from a receiver to its senders. Defaults
            to ``'cross'``.
        connections: Sites at which the networks exchange; None means all. Defaults to None.
        fusion: How a receiver merges what arrives. Defaults to ``dict(type='SumFusion')``.
        detach: Whether the gradient stops at the paths. Defaults to False.
        norm_cfg: Normalisation of the heads and the paths. Defaults to ``dict(type='BN')``.
        act_cfg: Activation of the heads and the paths. Defaults to ``dict(type='ReLU')``.
        align_corners: Passed to every interpolation. Defaults to False.
        init_cfg: Initialisation of the parameters. Defaults to None; the heads bring their own.
        **kwargs: Further arguments of every head, e.g. ``channels`` or ``loss_decode``.

    Raises:
        ValueError: No network, a reserved or impossible name, an unknown site, topology or fusion,
            or networks that differ in their classes, in the ignored label or in the threshold.
    """

    head_class: ClassVar[type[SteppedDecodeHead]]

    def __init__(
        self,
        *,
        networks: Mapping[str, Mapping[str, Any]],
        num_classes: int,
        topology: str | Mapping[str, Sequence[str]] = 'cross',
        connections: Sequence[str] | None = None,
        fusion: dict[str, Any] | None = None,
        detach: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
        align_corners: bool = False,
        init_cfg: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_cfg)
        check_network_names(networks)
        shared = dict(
            num_classes=num_classes,
            norm_cfg=norm_cfg or dict(type='BN'),
            act_cfg=act_cfg or dict(type='ReLU'),
            align_corners=align_corners,
        )
        self.networks = ModuleDict(
            {
                name: self._build_head(name, {**shared, **kwargs, **own})
                for name, own in networks.items()
            }
        )
        self.cooperation = Cooperation(
            site_channels={name: head.site_channels for name, head in self.networks.items()},
            connections=connections,
            paths=dict(
                topology=topology,
                fusion=fusion,
                detach=detach,
                norm_cfg=shared['norm_cfg'],
                act_cfg=shared['act_cfg'],
                align_corners=align_corners,
            ),
        )
        self._check_agreement(num_classes)
        first = next(iter(self.networks.values()))
        self.num_classes = num_classes
        self.out_channels = first.out_channels
        self.threshold = first.threshold
        self.ignore_index = first.ignore_index
        self.align_corners = align_corners

    def _build_head(self, network: str, arguments: dict[str, Any]) -> SteppedDecodeHead:
        try:
            return self.head_class(**arguments)
        except ValueError as error:
            raise ValueError(f'network {network!r}: {error}') from error

    def _check_agreement(self, num_classes: int) -> None:
        """Compare what the networks have to share, as they share labels and the ensemble."""
        for key in ('num_classes', 'out_channels', 'threshold', 'ignore_index'):
            found = {name: getattr(head, key) for name, head in self.networks.items()}
            if key == 'num_classes':
                found['all'] = num_classes
            if len(set(found.values())) > 1:
                raise ValueError(
                    f'{key} is {found}, but the networks share labels and ensemble; give it once, '
                    'for all of them.'
                )

    @property
    def network_names(self) -> tuple[str, ...]:
        """Names of the networks, in order."""
        return tuple(self.networks)

    def forward(self, inputs: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """Run all networks.

        Args:
            inputs: Every network's feature pyramid, each level ``(N, C_i, H_i, W_i)``.

        Returns:
            Every network's logits, ``(N, num_classes, H, W)`` at the stride of its decoder.

        Raises:
            ValueError: The feature pyramids do not fit the networks of the head.
        """
        if set(inputs) != set(self.networks):
            raise InputError(
                f'the backbone has the networks {list(inputs)}, the decode head '
                f'{list(self.networks)}; use the same names in both.'
            )
        for name, head in self.networks.items():
            head.check_inputs(inputs[name], name)
        return self.cooperation({n: head.steps(inputs[n]) for n, head in self.networks.items()})

    def loss(
        self,
        inputs: Mapping[str, Sequence[Tensor]],
        batch_data_samples: SampleList,
        train_cfg: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Every network's losses (equation 1), as ``top.loss_ce``, ``bottom.loss_ce`` and so on.

        Args:
            inputs: As in :meth:`forward`.
            batch_data_samples: Samples with ``gt_sem_seg``.
            train_cfg: Not used; part of mmseg's interface.

        Returns:
            Losses and accuracies by name.
        """
        seg_logits = self.forward(inputs)
        losses: dict[str, Tensor] = {}
        for name, head in self.networks.items():
            losses.update(add_prefix(head.loss_by_feat(seg_logits[name], batch_data_samples), name))
        return losses

    def predict(
        self,
        inputs: Mapping[str, Sequence[Tensor]],
        batch_img_metas: list[dict[str, Any]],
        test_cfg: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Every network's logits at the size of the network's input.

        Args:
            inputs: As in :meth:`forward`.
            batch_img_metas: Meta information of the images, with ``img_shape`` or ``pad_shape``.
            test_cfg: Not used; part of mmseg's interface.

        Returns:
            Logits by network, ``(N, num_classes, H, W)``.
        """
        seg_logits = self.forward(inputs)
        return {
            name: head.predict_by_feat(seg_logits[name], batch_img_metas)
            for name, head in self.networks.items()
        }


def check_network_names(networks: Mapping[str, Any]) -> None:
    """Reject names that cannot serve as a network's name.

    Args:
        networks: Networks by name.

    Raises:
        ValueError: There is no network, or a name is no identifier or stands for the ensemble.
    """
    if not networks:
        raise ValueError('networks is empty; name at least one network.')
    for name in networks:
        if not str(name).isidentifier() or name in (ENSEMBLE, 'all'):
            raise ValueError(
                f'{name!r} cannot name a network; use a Python identifier other than '
                f"{ENSEMBLE!r} and 'all', which stand for the outputs."
            )
