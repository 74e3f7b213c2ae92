"""Finds the channels of feature pyramids, so that a config need not say them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError
from .backbones.coop_backbone import CoopBackbone, feature_maps, stem_channels


def image_channels(model: Any) -> int:
    """Channels of the images that a segmentor takes.

    Args:
        model: The segmentor.

    Returns:
        As many as the data preprocessor has means, if these differ by channel, or else as its
        backbone takes.
    """
    known = normalized_channels(getattr(model, 'data_preprocessor', None))
    if known is not None:
        return known
    backbone = model.backbone
    if isinstance(backbone, CoopBackbone):
        return backbone.image_channels
    return stem_channels(backbone) or 3


def normalized_channels(data_preprocessor: Any) -> int | None:
    """Channels of the images that a data preprocessor gives; None if one mean is for all."""
    mean = getattr(data_preprocessor, 'mean', None)
    return len(mean) if mean is not None and len(mean) > 1 else None


class ChannelsUnknown(InputError):
    """A backbone cannot be asked for its channels."""


class PyramidChannels(dict[str, tuple[int, ...]]):
    """Channels of the levels of every network's feature pyramid, by network.

    A network is asked when its entry is wanted for the first time. Some backbones declare them; of
    all others a copy without numbers (on torch's meta device, or else on the CPU) runs on an image.
    Neither weights nor statistics nor the random state change.

    Args:
        backbones: Backbone of every network.
        necks: Necks of the networks that have one, behind which the channels count.
        size: Height and width of the image, since some backbones fit one size only. None: a size
            that the backbone names, or else 224. Defaults to None.
        inputs: What a network reads of the image, see :class:`CoopBackbone`. Defaults to None: all
            of it.
        image_channels: Channels of the image. Defaults to None: as many as the backbones take.
    """

    def __init__(
        self,
        backbones: Mapping[str, nn.Module],
        necks: Mapping[str, nn.Module],
        size: int | Sequence[int] | None = None,
        inputs: Mapping[str, Sequence[int]] | None = None,
        image_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.backbones = backbones
        self.necks = dict(necks.items())
        self.size = size
        self.inputs = inputs or {}
        self.image_channels = image_channels

    def __missing__(self, network: str) -> tuple[int, ...]:
        backbone = self.backbones[network]
        neck = self.necks.get(network)
        taken = stem_channels(backbone)
        channels = len(self.inputs.get(network, ())) or self.image_channels or taken or 3
        # A first convolution of other channels may be behind what folds the image into them.
        sure = neck is None and taken in (None, channels)
        declared = _declared(backbone) if sure else None
        self[network] = declared or self._of_a_trial(network, backbone, neck, channels)
        return self[network]

    def _of_a_trial(
        self, network: str, backbone: nn.Module, neck: nn.Module | None, channels: int
    ) -> tuple[int, ...]:
        size: Any = self.size or getattr(backbone, 'img_size', 224)
        height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
        image = torch.zeros(1, channels, height, width)
        reason: Exception
        for device in ('meta', 'cpu'):
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                try:
                    trial = skip_pointwise(_copy_to(backbone, device))
                    levels = feature_maps(network, trial, image.to(device))
                    if neck is not None:
                        _check_neck(network, neck, levels)
                        levels = skip_pointwise(_copy_to(neck, device))(levels)
                    return tuple(level.shape[1] for level in levels)
                except (AssertionError, RuntimeError) as error:
                    reason = error
        taken = stem_channels(backbone)
        if taken not in (None, channels):
            raise InputError(
                f'network {network!r} gets images of {channels} channels, but its backbone takes '
                f'{taken}; give it in_channels={channels}, or say in inputs of CoopBackbone which '
                f'channels it reads ({type(reason).__name__}: {reason}).'
            ) from reason
        raise ChannelsUnknown(
            f'network {network!r} does not run on an image of {height}x{width} as far as its head, '
            f'to show the channels there ({type(reason).__name__}: {reason}); give the data '
            "preprocessor the size of the images, or write the head's in_channels."
        ) from reason


def _check_neck(network: str, neck: nn.Module, levels: Sequence[Tensor]) -> None:
    expected, found = getattr(neck, 'in_channels', None), [level.shape[1] for level in levels]
    if isinstance(expected, Sequence) and [*expected] != found:
        raise InputError(
            f'the neck of network {network!r} was built for {[*expected]} channels, but the '
            f'backbone returns {found}; change in_channels, or leave it out: they are found.'
        )


def _declared(backbone: Any) -> tuple[int, ...] | None:
    """Channels that a backbone of timm, or one of ours, says that it returns."""
    info: Any = getattr(getattr(backbone, 'timm_model', None), 'feature_info', None)
    if hasattr(info, 'channels'):
        return tuple(info.channels())
    declared = getattr(backbone, 'out_channels', None)
    # Elsewhere out_channels may be those of a layer.
    return declared if isinstance(declared, tuple) and hasattr(backbone, 'strides') else None


def _copy_to(module: nn.Module, device: str) -> nn.Module:
    """Copy a module to a device without a copy in between, ready to evaluate."""
    tensors: dict[int, Tensor] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        moved = tensor.detach().to(device, copy=True)
        parameter = isinstance(tensor, nn.Parameter)
        tensors[id(tensor)] = nn.Parameter(moved, requires_grad=False) if parameter else moved
    copied = copy.deepcopy(module, tensors)
    copied.eval()
    return copied


def skip_pointwise(module: nn.Module) -> nn.Module:
    """Have batch norms and ReLU6 return their inputs, in place: shapes stay, values do not.

    For modules without numbers, on the meta device or with fake tensors: PyTorch computes these
    layers in Python there, which takes nine tenths of the time.

    Args:
        module: The module, of which nothing but shapes is asked any more.

    Returns:
        The module.
    """
    for part in module.modules():
        if isinstance(part, (_BatchNorm, nn.Hardtanh)):
            part.forward = lambda x: x  # type: ignore[method-assign, assignment]
    return module
