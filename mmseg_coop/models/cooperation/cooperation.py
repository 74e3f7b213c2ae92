"""Runs several networks side by side, layer by layer, with an exchange between the layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule, ModuleDict, ModuleList
from torch import Tensor

from .paths import CooperativePaths

#: A network that offers its feature maps at the sites. It yields ``(site, feature)``, is sent what
#: it goes on with, and returns its result.
Steps = Generator[tuple[str, Tensor], Tensor, Any]


def run_alone(steps: Steps) -> Any:
    """Run one network without partners: it goes on with its own feature maps.

    Args:
        steps: The network.

    Returns:
        What the network returns.

    Example:
        >>> import torch
        >>> def network(x):
        ...     x = yield 'first', 2 * x
        ...     return x + 1
        >>> run_alone(network(torch.ones(1)))
        tensor([3.])
    """
    feature = None
    while True:
        try:
            _, feature = steps.send(feature)  # type: ignore[arg-type]  # a generator starts on None
        except StopIteration as finished:
            return finished.value


class Cooperation(BaseModule):
    """All cooperative paths between networks that run in step.

    Networks are generators (:data:`Steps`), so that each reads as the plain network it is. After
    every layer at which all of them have arrived, the paths of that site exchange the feature maps.

    Args:
        site_channels: For every network the channels at each site, in the order in which it yields
            there, e.g. ``dict(top=dict(aspp=(256, 256), decoder=(256,)), bottom=…)``.
        connections: Sites at which the networks exchange. None means all. Defaults to None.
        paths: Arguments of :class:`CooperativePaths` other than ``channels``.
        init_cfg: Initialisation of the parameters. Defaults to None.

    Raises:
        ValueError: Unknown site, or networks whose sites differ.
    """

    def __init__(
        self,
        *,
        site_channels: Mapping[str, Mapping[str, Sequence[int]]],
        connections: Sequence[str] | None = None,
        paths: Mapping[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        names = list(site_channels)
        layers = {
            name: {site: len(channels) for site, channels in sites.items()}
            for name, sites in site_channels.items()
        }
        if any(layers[name] != layers[names[0]] for name in names):
            raise ValueError(
                'networks that cooperate need the same number of layers at each site, got '
                f'{layers}; give them the same number of dilations and convolutions.'
            )
        sites = list(layers[names[0]])
        connections = sites if connections is None else list(connections)
        for site in connections:
            if site not in sites:
                raise ValueError(
                    f'connections has the unknown site {site!r}; the sites are {sites}.'
                )
        self.paths = ModuleDict()
        for site in sites:
            if site in connections:
                self.paths[site] = ModuleList(
                    CooperativePaths(
                        channels={name: site_channels[name][site][layer] for name in names},
                        **(paths or {}),
                    )
                    for layer in range(layers[names[0]][site])
                )

    def forward(self, networks: Mapping[str, Steps]) -> dict[str, Any]:
        """Run the networks in step.

        Args:
            networks: The networks, by name.

        Returns:
            What each network returns, by name.
        """
        layer: Counter[str] = Counter()
        features: dict[str, Tensor | None] = dict.fromkeys(networks)
        while True:
            arrived: dict[str, Tensor] = {}
            results: dict[str, Any] = {}
            site = ''
            for name, steps in networks.items():
                try:
                    site, arrived[name] = steps.send(features[name])  # type: ignore[arg-type]
                except StopIteration as finished:
                    results[name] = finished.value
            if results:
                return results
            if site in self.paths:
                arrived = self.paths[site][layer[site]](arrived)
            layer[site] += 1
            features = {**arrived}
