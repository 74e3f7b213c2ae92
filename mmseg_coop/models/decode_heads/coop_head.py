"""Decode heads that cooperate."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmengine.model import BaseModule, ModuleDict
from mmseg.registry import MODELS
from mmseg.utils import SampleList, add_prefix
from torch import Tensor

from ...errors import InputError
from ..cooperation import Cooperation
from ..cooperation.networks import check_network_names
from .cooperative_decode_head import CooperativeDecodeHead
from .levels import check_levels, fill_in_channels


@MODELS.register_module()
class CoopHead(BaseModule):
    """Several decode heads, one a network, that exchange feature maps at their sites.

    Each network keeps its own classifier and its own loss; the total is their sum (equation 1).
    Heads of different types exchange at the sites that all of them have.

    Args:
        networks: For every network, by name and in order (the first is the paper's "top"), the
            ``type`` of its head, a :class:`CooperativeDecodeHead`, and the arguments that differ
            from those of the others.
        num_classes: Number of classes.
        topology: Who sends to whom: ``'none'``, ``'one_way'`` (each network to those after it),
            ``'cross'`` (each to all others), or a mapping from a receiver to its senders. Defaults
            to ``'cross'``.
        connections: Sites at which the networks exchange; None means all that they share. Defaults
            to None.
        fusion: How a receiver merges what arrives. Defaults to ``dict(type='SumFusion')``.
        detach: Whether the gradient stops at the paths. Defaults to False.
        norm_cfg: Normalisation of the heads and the paths. Defaults to ``dict(type='BN')``.
        act_cfg: Activation of the heads and the paths. Defaults to ``dict(type='ReLU')``.
        align_corners: Passed to every interpolation. Defaults to False.
        pyramid_channels: Channels of the levels of every network's feature pyramid, from which
            ``in_channels`` and the like are taken where they are left out;
            :class:`CrossCoopEncoderDecoder` fills it in. Defaults to None.
        init_cfg: Initialisation of the parameters. Defaults to None; the heads bring their own.
        **kwargs: Further arguments of every head, e.g. ``channels`` or ``loss_decode``.

    Raises:
        ValueError: No network, a reserved or impossible name, an unknown head, site, topology or
            fusion, or networks that differ in their classes, in the ignored label or in the
            threshold.

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
        self.networks = ModuleDict(
            {
                name: self._build_head(name, {**shared, **kwargs, **own}, pyramid_channels)
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

    def _build_head(
        self,
        network: str,
        arguments: dict[str, Any],
        pyramid_channels: Mapping[str, Sequence[int]] | None,
    ) -> CooperativeDecodeHead:
        try:
            head = self.head_class(arguments)
            left_out = [key for key in head.reads if arguments.get(key) is None]
            if left_out and pyramid_channels is not None:
                channels = pyramid_channels[network]
                arguments = fill_in_channels(head.reads, arguments, channels, network)
            elif 'in_channels' in left_out:
                raise ValueError(
                    'in_channels is left out; give it, or pyramid_channels for all networks, or '
                    'use CrossCoopEncoderDecoder, which asks the backbones.'
                )
            return head(**{key: value for key, value in arguments.items() if key != 'type'})
        except InputError:  # names the network
            raise
        except ValueError as error:
            raise ValueError(f'network {network!r}: {error}') from error

    @classmethod
    def head_class(cls, network: Mapping[str, Any]) -> type[CooperativeDecodeHead]:
        """Find the class of a network's head.

        Args:
            network: Config of the network's head.

        Returns:
            The class that its ``type`` names, or else the default one.

        Raises:
            ValueError: There is no type, or that of a head that offers no sites.
        """
        name = network.get('type', cls.head_type)
        if name is None:
            raise ValueError(
                f"{cls.__name__} needs to know the head; give a type, such as 'DeepLabV3PlusHead'."
            )
        head = MODELS.get(name) if isinstance(name, str) else name
        if not inspect.isclass(head) or not issubclass(head, CooperativeDecodeHead):
            raise ValueError(
                f'type={name!r} is no head that offers sites; use DeepLabV3PlusHead, DPAHead, or '
                'derive one from CooperativeDecodeHead and register it.'
            )
        return head

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

    def check_channels(self, pyramid_channels: Mapping[str, Sequence[int]]) -> None:
        """Compare feature pyramids with what the heads were built for.

        Args:
            pyramid_channels: Channels of the levels of networks' feature pyramids.

        Raises:
            ValueError: A level is missing or has other channels.
        """
        for name, channels in pyramid_channels.items():
            check_levels(self.networks[name].input_channels, channels, name)

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
        self.check_channels(
            {name: [level.shape[1] for level in levels] for name, levels in inputs.items()}
        )
        return self.cooperation({n: head.steps(inputs[n]) for n, head in self.networks.items()})

    def loss(
        self,
        inputs: Mapping[str, Sequence[Tensor]],
        batch_data_samples: SampleList,
        train_cfg: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of all networks (equation 1), such as ``top.loss_ce``; arguments as in mmseg."""
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
        """Logits by network, as large as the image, ``(N, num_classes, H, W)``; as in mmseg."""
        seg_logits = self.forward(inputs)
        return {
            name: head.predict_by_feat(seg_logits[name], batch_img_metas)
            for name, head in self.networks.items()
        }


@MODELS.register_module()
class CrossCoopASPPHead(CoopHead):
    """DeepLabV3+ heads with cross cooperative connections.

    The proposed method of "Fusion of Different Features by Cross Cooperative Learning for Semantic
    Segmentation" (Ikedo and Hotta, VISAPP 2022), section 3. Its predecessor, its ablations and its
    baselines are settings of this class:

    =============================  ==============================================================
    method                         setting
    =============================  ==============================================================
    ours                           ``topology='cross'``
    conventional                   ``topology='one_way'``
    w/o all path, ensemble         ``topology='none'``
    without Connection 1           ``connections=['aspp', 'aspp_output', 'low_level', 'decoder']``
    without Connection 2           ``connections=['input', 'aspp', 'low_level', 'decoder']``
    single network                 one entry in ``networks``
    =============================  ==============================================================

    Args:
        networks: By name, arguments of :class:`DeepLabV3PlusHead` in which the networks differ.
        **kwargs: Arguments of :class:`CoopHead`, and those of :class:`DeepLabV3PlusHead` that
            all networks share.

    Example:
        >>> import torch
        >>> head = CrossCoopASPPHead(
        ...     networks=dict(
        ...         top=dict(in_channels=32, low_level_in_channels=8),
        ...         bottom=dict(in_channels=16, low_level_in_channels=4),
        ...     ),
        ...     channels=8,
        ...     num_classes=3,
        ... ).eval()
        >>> top = [torch.rand(2, 8, 16, 16), torch.rand(2, 32, 4, 4)]
        >>> bottom = [torch.rand(2, 4, 16, 16), torch.rand(2, 16, 4, 4)]
        >>> {name: tuple(x.shape) for name, x in head(dict(top=top, bottom=bottom)).items()}
        {'top': (2, 3, 16, 16), 'bottom': (2, 3, 16, 16)}
    """

    head_type = 'DeepLabV3PlusHead'


@MODELS.register_module()
class CrossCoopDPAHead(CoopHead):
    """DPANet heads with cooperative paths.

    The predecessor of cross cooperative learning ("Feature Sharing Cooperative Network for Semantic
    Segmentation", Ikedo and Hotta, VISAPP 2021) let two DANets cooperate. DPANet has the layout of
    DANet, so this is its idea on cheaper attention; the sites are those of :class:`DPAHead`.

    Args:
        networks: By name, arguments of :class:`DPAHead` in which the networks differ.
        **kwargs: Arguments of :class:`CoopHead`, and those of :class:`DPAHead` that all
            networks share.

    Example:
        >>> import torch
        >>> head = CrossCoopDPAHead(
        ...     networks=dict(top=dict(in_channels=32), bottom=dict(in_channels=16)),
        ...     channels=8,
        ...     num_classes=3,
        ... ).eval()
        >>> logits = head(dict(top=[torch.rand(1, 32, 8, 8)], bottom=[torch.rand(1, 16, 8, 8)]))
        >>> {name: tuple(x.shape) for name, x in logits.items()}
        {'top': (1, 3, 8, 8), 'bottom': (1, 3, 8, 8)}
    """

    head_type = 'DPAHead'
