"""Necks of several networks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule, ModuleDict
from mmseg.registry import MODELS
from torch import Tensor

from ...registry import class_of
from ..cooperation.networks import check_network_names


@MODELS.register_module()
class CoopNeck(BaseModule):
    """Runs a neck of mmseg on the feature pyramid of each network that has one.

    Args:
        networks: Config of the network's neck, by name. The pyramids of other networks pass.
        pyramid_channels: Channels of the levels of every network's feature pyramid, which become
            the ``in_channels`` that a neck leaves out; :class:`CrossCoopEncoderDecoder` fills it
            in. Defaults to None.
        init_cfg: Initialisation of the parameters. Defaults to None; the necks bring their own.

    Raises:
        ValueError: No network, or an impossible name.

    Example:
        >>> import torch
        >>> neck = CoopNeck(
        ...     networks=dict(top=dict(type='FPN', out_channels=6, num_outs=2)),
        ...     pyramid_channels=dict(top=(4, 8)),
        ... )
        >>> levels = [torch.rand(1, 4, 8, 8), torch.rand(1, 8, 4, 4)]
        >>> pyramids = neck(dict(top=levels, bottom=levels))
        >>> {name: [level.shape[1] for level in levels] for name, levels in pyramids.items()}
        {'top': [6, 6], 'bottom': [4, 8]}
    """

    def __init__(
        self,
        *,
        networks: Mapping[str, Mapping[str, Any]],
        pyramid_channels: Mapping[str, Sequence[int]] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_network_names(networks)
        self.networks = ModuleDict()
        #: Config of every network's neck, complete.
        self.configs: dict[str, dict[str, Any]] = {}
        for name, config in networks.items():
            neck = class_of(config, MODELS)
            takes = inspect.signature(neck).parameters if neck else {}
            left_out = 'in_channels' in takes and config.get('in_channels') is None
            if left_out and pyramid_channels is not None:
                config = {**config, 'in_channels': list(pyramid_channels[name])}
            self.configs[name] = dict(config)
            self.networks[name] = MODELS.build(dict(config))

    def forward(self, inputs: Mapping[str, Sequence[Tensor]]) -> dict[str, Sequence[Tensor]]:
        """Run all necks.

        Args:
            inputs: Feature pyramids by network, each level ``(N, C_i, H_i, W_i)``.

        Returns:
            What heads take in their place, in the same form.
        """
        return {
            name: tuple(self.networks[name](levels)) if name in self.networks else levels
            for name, levels in inputs.items()
        }
