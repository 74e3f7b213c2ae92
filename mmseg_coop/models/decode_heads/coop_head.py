"""Decode heads that cooperate."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

from mmengine.model import BaseModule, ModuleDict
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg.utils import SampleList, add_prefix
from torch import Tensor

from ...errors import InputError
from ...registry import class_of
from ..cooperation import Cooperation, Steps
from ..cooperation.networks import check_network_names
from ..cooperation.paths import resolve_topology
from .cooperative_decode_head import CooperativeDecodeHead
from .levels import READS, check_levels, fill_in_channels
from .plain_head import is_plain, levels_read, plain_steps, why_not_plain
from .transfer import build_transfers


@MODELS.register_module()
class CoopHead(BaseModule):
    """Several decode heads, one a network, that exchange feature maps at their sites.

    Each network keeps its own classifier and its own loss; the total is their sum (equation 1).
    With ``transfer`` networks learn from the outputs of others beside the labels.
    Heads of different types exchange at the sites that all of them have. Heads of mmseg that return
    one map of logits offer the levels of the feature pyramid that they read, at the site
    ``pyramid``: of several numbers of levels, the last ones, from the deepest on. Beside heads with
    sites of their own they offer what theirs share, the deepest level, as ``input``. A network that
    neither sends nor receives beside others that do may have any head.

    Args:
        networks: For every network, by name and in order (the first is the paper's "top"), the
            ``type`` of its head, a :class:`CooperativeDecodeHead` or a plain head of mmseg, and the
            arguments that differ from those of the others.
        num_classes: Number of classes.
        topology: Who sends to whom: ``'none'``, ``'one_way'`` (each network to those after it),
            ``'cross'`` (each to all others), or a mapping from a receiver to its senders. Defaults
            to ``'cross'``.
        connections: Sites at which the networks exchange; None means all that they share. Defaults
            to None.
        fusion: How a receiver merges what arrives. Defaults to ``dict(type='SumFusion')``.
        detach: Whether the gradient stops at the paths. Defaults to False.
        transfer: Who learns from whose output: arguments of :class:`Transfer`, a dictionary for
            each teacher of a student. Two networks that teach each other, with
            ``topology='none'``, are mutual learning (Zhang et al., `Deep Mutual Learning
            <https://arxiv.org/abs/1706.00384>`_). Defaults to None.
        norm_cfg: Normalisation of the heads and the paths. Defaults to ``dict(type='BN')``.
        act_cfg: Activation of the heads and the paths. Defaults to ``dict(type='ReLU')``.
        align_corners: Passed to every interpolation. Defaults to False.
        pyramid_channels: Channels of the levels of every network's feature pyramid, from which
            ``in_channels`` and the like are taken where they are left out;
            :class:`CrossCoopEncoderDecoder` fills it in. Defaults to None.
        init_cfg: Initialisation of the parameters. Defaults to None; the heads bring their own.
        **kwargs: Further arguments of every head, e.g. ``channels`` or ``loss_decode``.

    Raises:
        ValueError: No network, a reserved or impossible name, an unknown head or one with other
            outputs, an unknown site, topology, fusion, teacher or student, no site in common, or
            networks that differ in their classes, in the ignored label or in the threshold.

    Example:
        >>> import torch
        >>> head = CoopHead(
        ...     networks=dict(
        ...         top=dict(type='DeepLabV3PlusHead', in_channels=32, low_level_in_channels=8),
        ...         bottom=dict(type='DPAHead', in_channels=16),
        ...     ),
        ...     channels=8,
        ...     num_classes=3,
        ... ).eval()
        >>> list(head.cooperation.paths)
        ['input']
        >>> pyramids = dict(
        ...     top=[torch.rand(2, 8, 16, 16), torch.rand(2, 32, 4, 4)],
        ...     bottom=[torch.rand(2, 16, 8, 8)],
        ... )
        >>> {name: tuple(x.shape) for name, x in head(pyramids).items()}
        {'top': (2, 3, 16, 16), 'bottom': (2, 3, 8, 8)}
    """

    #: Type of the networks that name none.
    head_type: ClassVar[str | None] = None

    def __init__(
        self,
        *,
        networks: Mapping[str, Mapping[str, Any]],
        num_classes: int,
        topology: str | Mapping[str, Sequence[str]] = 'cross',
        connections: Sequence[str] | None = None,
        fusion: dict[str, Any] | None = None,
        detach: bool = False,
        transfer: Sequence[Mapping[str, Any]] | None = None,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
        align_corners: bool = False,
        pyramid_channels: Mapping[str, Sequence[int]] | None = None,
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
        self.networks = ModuleDict()
        #: Config of every network's head, complete.
        self.configs: dict[str, dict[str, Any]] = {}
        #: Channels of the levels that every network reads.
        self.input_channels: dict[str, dict[int, int]] = {}
        for name, own in networks.items():
            self.networks[name], self.input_channels[name] = self._build_head(
                name, {**shared, **kwargs, **own}, pyramid_channels
            )
        senders_of = resolve_topology(topology, self.network_names)
        exchanging = {*senders_of, *chain(*senders_of.values())} or {*networks}
        #: Networks that send or receive, and run in step; without any, all.
        self.exchanging = [name for name in networks if name in exchanging]
        plain = [
            name
            for name in self.exchanging
            if not isinstance(self.networks[name], CooperativeDecodeHead)
        ]
        self.plain_site = 'pyramid' if plain == self.exchanging else 'input'
        pyramid = self.plain_site == 'pyramid'
        count = min(len(self.input_channels[name]) for name in plain) if pyramid else 1
        #: Levels that every plain head offers.
        self.plain_levels = {name: list(self.input_channels[name])[-count:] for name in plain}
        self.cooperation = Cooperation(
            site_channels={name: self._site_channels(name) for name in self.exchanging},
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
        self.transfers = build_transfers(transfer or (), self.network_names)
        #: Networks without a loss; :class:`CrossCoopEncoderDecoder` fills it in.
        self.frozen: Collection[str] = ()
        self._check_agreement(num_classes)
        first = next(iter(self.networks.values()))
        self.num_classes = num_classes
        self.out_channels = first.out_channels
        self.threshold = first.threshold
        self.ignore_index = first.ignore_index
        self.align_corners = align_corners

    def _build_head(
        self,
        network: str,
        arguments: dict[str, Any],
        pyramid_channels: Mapping[str, Sequence[int]] | None,
    ) -> tuple[BaseDecodeHead, dict[int, int]]:
        """Build a network's head; return it with the channels of the levels that it reads."""
        try:
            head = self.head_class(arguments)
            reads = getattr(head, 'reads', READS)
            left_out = [key for key in reads if arguments.get(key) is None]
            if left_out and pyramid_channels is not None:
                channels = pyramid_channels[network]
                arguments = fill_in_channels(reads, arguments, channels, network)
            elif 'in_channels' in left_out:
                raise ValueError(
                    'in_channels is left out; give it, or pyramid_channels for all networks, or '
                    'use CrossCoopEncoderDecoder, which asks the backbones.'
                )
            self.configs[network] = {**arguments, 'type': arguments.get('type', self.head_type)}
            built = head(**{key: value for key, value in arguments.items() if key != 'type'})
        except InputError:  # names the network
            raise
        except ValueError as error:
            raise ValueError(f'network {network!r}: {error}') from error
        except AssertionError as error:  # of mmseg's heads, mostly without a word
            raise ValueError(
                f'network {network!r}: {head.__name__} refuses '
                f'in_channels={arguments["in_channels"]}, in_index={arguments.get("in_index", -1)} '
                f'or another argument ({str(error) or "an assertion failed"}); a head that reads '
                'several levels takes a list of them, in_index=[0, 1, 2, 3].'
            ) from error
        if isinstance(built, CooperativeDecodeHead):
            return built, built.input_channels
        return built, levels_read(built, arguments)

    def _site_channels(self, network: str) -> dict[str, tuple[int, ...]]:
        if network not in self.plain_levels:
            return self.networks[network].site_channels
        channels = self.input_channels[network]
        return {self.plain_site: tuple(channels[level] for level in self.plain_levels[network])}

    def _steps(self, network: str, inputs: Sequence[Tensor]) -> Steps:
        head = self.networks[network]
        if network not in self.plain_levels:
            return head.steps(inputs)
        return plain_steps(head, inputs, self.plain_site, self.plain_levels[network])

    @classmethod
    def head_class(cls, network: Mapping[str, Any]) -> type[BaseDecodeHead]:
        """Find the class of a network's head.

        Args:
            network: Config of the network's head.

        Returns:
            The class that its ``type`` names, or else the default one.

        Raises:
            ValueError: There is no type, or that of a head that cannot cooperate.
        """
        name = network.get('type', cls.head_type)
        if name is None:
            raise ValueError(
                f"{cls.__name__} needs to know the head; give a type, such as 'DeepLabV3PlusHead'."
            )
        head = class_of(dict(type=name), MODELS)
        if is_plain(head) or (inspect.isclass(head) and issubclass(head, CooperativeDecodeHead)):
            return head
        raise ValueError(
            f'type={name!r} {why_not_plain(head)}; use a head such as DeepLabV3PlusHead, DPAHead '
            "or mmseg's SegformerHead, or derive one from CooperativeDecodeHead and register it."
        )

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

    def senders_to(self, network: str) -> tuple[str, ...]:
        """Names of the networks whose feature maps a network receives, in order."""
        paths = [path for layers in self.cooperation.paths.values() for path in layers]
        found = {sender for path in paths for sender in path.senders_of.get(network, ())}
        return tuple(name for name in self.networks if name in found)

    def check_channels(self, pyramid_channels: Mapping[str, Sequence[int]]) -> None:
        """Compare feature pyramids with what the heads were built for.

        Args:
            pyramid_channels: Channels of the levels of networks' feature pyramids.

        Raises:
            ValueError: A level is missing or has other channels.
        """
        for name, expected in self.input_channels.items():
            if name in pyramid_channels:
                check_levels(expected, pyramid_channels[name], name)

    def forward(self, inputs: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """Run all networks.

        Args:
            inputs: Every network's feature pyramid, each level ``(N, C_i, H_i, W_i)``; those of
                others are left alone.

        Returns:
            Every network's logits, ``(N, num_classes, H, W)`` at the stride of its decoder.

        Raises:
            ValueError: The feature pyramids do not fit the networks of the head.
        """
        if not {*inputs} >= {*self.networks}:
            raise InputError(
                f'the backbone has the networks {list(inputs)}, the decode head '
                f'{list(self.networks)}; use the same names in both.'
            )
        self.check_channels(
            {name: [level.shape[1] for level in levels] for name, levels in inputs.items()}
        )
        logits = self.cooperation(
            {name: self._steps(name, inputs[name]) for name in self.exchanging}
        )
        return {
            name: logits[name] if name in logits else head(inputs[name])
            for name, head in self.networks.items()
        }

    def loss(
        self,
        inputs: Mapping[str, Sequence[Tensor]],
        batch_data_samples: SampleList,
        train_cfg: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of all networks (equation 1), such as ``top.loss_ce``; arguments as in mmseg.

        Those of ``transfer`` are called ``light.loss_transfer_ensemble``, by student and teacher.
        """
        seg_logits: dict[str, Any] = self.forward(inputs)
        losses: dict[str, Tensor] = {}
        for name, head in self.networks.items():
            if name not in self.frozen:
                own = head.loss_by_feat(seg_logits[name], batch_data_samples)
                losses.update(add_prefix(own, name))
        # Of a head with several outputs in training, such as DPAHead, the first one predicts.
        predicted = {
            name: next(iter(logits.values())) if isinstance(logits, Mapping) else logits
            for name, logits in seg_logits.items()
        }
        for transfer in self.transfers:
            losses[transfer.name] = transfer(
                predicted,
                self.networks[transfer.student]._stack_batch_gt(batch_data_samples),
                ignore_index=self.ignore_index,
                align_corners=self.align_corners,
            )
        return losses

    def predict(
        self,
        inputs: Mapping[str, Sequence[Tensor]],
        batch_img_metas: list[dict[str, Any]],
        test_cfg: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Logits by network, as large as the image, ``(N, num_classes, H, W)``; as in mmseg."""
        seg_logits = self.forward(inputs)
        return {
            name: head.predict_by_feat(seg_logits[name], batch_img_metas)
            for name, head in self.networks.items()
        }
