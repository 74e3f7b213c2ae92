"""Runs several networks side by side, layer by layer, with an exchange between the layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule, ModuleDict, ModuleList
from torch import Tensor

from .paths import CooperativePaths

#: A network that offers its feature maps at the sites. It yields ``(site, feature)``, is sent what
#: it goes on with, and returns its result.
Steps = Generator[tuple[str, Tensor], Tensor, Any]


def run_in_step(
    networks: Mapping[str, Steps],
    exchange: Callable[[str, dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> dict[str, Any]:
    """Run networks side by side, from one site to the next.

    Args:
        networks: The networks, by name. One of them alone runs as well.
        exchange: Takes the site at which all networks have arrived and their feature maps there;
            gives those with which they go on. Defaults to None: with their own.

    Returns:
        What each network returns, by name.

    Raises:
        RuntimeError: The networks do not arrive at the same sites in the same order.

    Example:
        >>> import torch
        >>> def network(x):
        ...     x = yield 'first', 2 * x
        ...     return x + 1
        >>> run_in_step(dict(alone=network(torch.ones(1))))
        {'alone': tensor([3.])}
    """
    features: dict[str, Any] = dict.fromkeys(networks)  # a generator starts on None
    while True:
        sites: dict[str, str | None] = {}
        arrived: dict[str, Tensor] = {}
        results: dict[str, Any] = {}
        for name, steps in networks.items():
            try:
                sites[name], arrived[name] = steps.send(features[name])
            except StopIteration as finished:
                sites[name], results[name] = None, finished.value
        first = sites[next(iter(networks))]
        if any(site != first for site in sites.values()):
            stands = ', '.join(
                f'{name} ' + ('at its end' if site is None else f'at {site!r}')
                for name, site in sites.items()
            )
            raise RuntimeError(
                f'the networks are out of step: {stands}; let all of them yield the same sites in '
                'the same order.'
            )
        if first is None:
            return results
        features = exchange(first, arrived) if exchange else {**arrived}


def _pass(sites: Collection[str], steps: Steps) -> Steps:
    """Let a network go on with its own feature maps at these sites."""
    feature: Any = None
    while True:
        try:
            site, feature = steps.send(feature)
        except StopIteration as finished:
            return finished.value
        if site not in sites:
            feature = yield site, feature


class Cooperation(BaseModule):
    """All cooperative paths between networks that run in step.

    Networks are generators (:data:`Steps`), so that each reads as the plain network it is. After
    every layer at which all of them have arrived, the paths of that site exchange the feature maps.

    Args:
        site_channels: For every network the channels at each site, in the order in which it yields
            there, e.g. ``dict(top=dict(aspp=(256, 256), decoder=(256,)), bottom=…)``.
        connections: Sites at which the networks exchange. None means all that all networks have.
            Defaults to None. Sites that only some networks have, they pass alone.
        paths: Arguments of :class:`CooperativePaths` other than ``channels``.
        init_cfg: Initialisation of the parameters. Defaults to None.

    Raises:
        ValueError: Unknown site, or networks whose sites differ.
        RuntimeError: From :meth:`forward`, if the networks are out of step or do not keep to
            ``site_channels``.
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
        shared = set.intersection(*({*sites} for sites in site_channels.values()))
        layers = {
            name: [(site, len(channels)) for site, channels in sites.items() if site in shared]
            for name, sites in site_channels.items()
        }
        if any(layers[name] != layers[names[0]] for name in names):
            raise ValueError(
                'networks that cooperate need the same number of layers at each site, in the same '
                f'order, got {layers}; give them the same number of dilations and convolutions.'
            )
        self.layers = dict(layers[names[0]])
        self.others = {name: {*sites} - shared for name, sites in site_channels.items()}
        sites = list(self.layers)
        if connections is None and not sites and (paths or {}).get('topology') != 'none':
            offered = '; '.join(f'{name} has {[*own]}' for name, own in site_channels.items())
            raise ValueError(
                f'the networks have no site in common: {offered}; choose other heads, or '
                "topology='none' for networks that do not cooperate."
            )
        connections = sites if connections is None else list(connections)
        for site in connections:
            if site not in sites:
                known = [name for name in names if site in site_channels[name]]
                what = (
                    f'site {site!r} of {", ".join(known)} alone'
                    if known
                    else f'unknown site {site!r}'
                )
                raise ValueError(
                    f'connections has the {what}; the sites that all networks have are {sites}.'
                )
        self.paths = ModuleDict()
        for site in sites:
            if site in connections:
                self.paths[site] = ModuleList(
                    CooperativePaths(
                        channels={name: site_channels[name][site][layer] for name in names},
                        **(paths or {}),
                    )
                    for layer in range(self.layers[site])
                )

    def forward(self, networks: Mapping[str, Steps]) -> dict[str, Any]:
        """Run the networks in step.

        Args:
            networks: The networks, by name.

        Returns:
            What each network returns, by name.
        """
        reached: Counter[str] = Counter()

        def exchange(site: str, features: dict[str, Tensor]) -> dict[str, Tensor]:
            layer = reached[site]
            if layer == self.layers.get(site, 0):
                raise RuntimeError(
                    f'the networks arrive at the site {site!r} for the {layer + 1}. time, but '
                    f'site_channels has {layer} layers there; let it state what the networks yield.'
                )
            reached[site] += 1
            return self.paths[site][layer](features) if site in self.paths else features

        in_step = {name: _pass(self.others[name], steps) for name, steps in networks.items()}
        results = run_in_step(in_step, exchange)
        if reached != self.layers:
            raise RuntimeError(
                f'the networks arrive at the sites {dict(reached)} (times), but site_channels has '
                f'{self.layers}; let it state what the networks yield.'
            )
        return results
