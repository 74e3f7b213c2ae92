"""Several backbones on one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, ModuleDict
from mmseg.registry import MODELS
from torch import Tensor, nn

from ...errors import InputError
from ..cooperation.networks import check_network_names


class _Renormalize(nn.Module):
    """An affine from one normalisation of an image to another, ``(N, C, H, W)``.

    With ``x = (image - mean) / std`` it gives ``(image - new_mean) / new_std``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, old: Mapping[str, Sequence[float]], new: Mapping[str, Sequence[float]]
    ) -> None:
        super().__init__()
        mean, std, new_mean, new_std = (
            torch.tensor(given[key], dtype=torch.float64).view(1, -1, 1, 1)
            for given in (old, new)
            for key in ('mean', 'std')
        )
        # Constants of the configuration, not of the training: they stay out of checkpoints.
        self.register_buffer('scale', (std / new_std).float(), persistent=False)
        self.register_buffer('shift', ((mean - new_mean) / new_std).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


@MODELS.register_module()
class CoopBackbone(BaseModule):
    """Runs every network's backbone on the image and returns each one's feature pyramid.

    Any backbone of mmseg, mmpretrain (``mmpretrain.…``) or timm (``TIMMBackbone``) fits. Maps that
    timm declares as ``NHWC``, Swin's for example, are permuted.

    Pretrained weights want the normalisation they were trained with, but an image is preprocessed
    once. ``normalize`` gives a network its own, as an affine on the preprocessed image.

    Networks may read different channels of the image, colour and depth for example: ``inputs`` says
    which. A channel given several times, as in ``(3, 3, 3)``, is shown to a backbone whose weights
    were trained on three.

    Args:
        networks: Config of every network's backbone, by name.
        inputs: Channels of the preprocessed image, from 0 on, that a network reads, by name. Those
            left out read all. Defaults to None.
        normalize: ``dict(mean=…, std=…)`` for the networks that differ from the data preprocessor,
            by name; a value for each channel that the network reads, in the units of the data
            preprocessor (RGB, 0 to 255). Defaults to None.
        input_normalize: ``dict(mean=…, std=…)`` that was applied to the image. Needed with
            ``normalize``; :class:`CrossCoopEncoderDecoder` fills it in from its data preprocessor.
            Defaults to None.
        shared: Whether all networks are one backbone, with the same weights, that runs on what each
            of them reads, such as images of two dates (a Siamese network). Defaults to False.
        init_cfg: Initialisation of the parameters. Defaults to None; the backbones bring their own.

    Raises:
        ValueError: No network, an impossible name, channels that the image does not have or the
            backbone does not fit, an incomplete normalisation, or networks that differ but are to
            be shared.

    Example:
        >>> import torch
        >>> backbone = CoopBackbone(
        ...     networks=dict(
        ...         top=dict(type='ResNetV1c', depth=18, num_stages=4),
        ...         bottom=dict(type='MobileNetV2', out_indices=(1, 6)),
        ...     )
        ... ).eval()
        >>> pyramids = backbone(torch.rand(1, 3, 64, 64))
        >>> [tuple(level.shape) for level in pyramids['bottom']]
        [(1, 24, 16, 16), (1, 320, 2, 2)]
    """

    def __init__(
        self,
        *,
        networks: Mapping[str, dict[str, Any]],
        inputs: Mapping[str, Sequence[int]] | None = None,
        normalize: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
        input_normalize: Mapping[str, Sequence[float]] | None = None,
        shared: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_network_names(networks)
        if shared:
            first, *others = networks.values()
            if any(other != first for other in others):
                raise ValueError(
                    'shared=True makes one backbone of all networks, but their configs differ; '
                    f'give {", ".join(networks)} the same.'
                )
            self.networks = ModuleDict(dict.fromkeys(networks, MODELS.build(first)))
        else:
            self.networks = ModuleDict(
                {name: MODELS.build(backbone) for name, backbone in networks.items()}
            )
        #: Channels of the image that a network reads, of those that do not read all.
        self.inputs = {name: tuple(channels) for name, channels in (inputs or {}).items()}
        known = len((input_normalize or {}).get('mean', ()))
        for name, channels in self.inputs.items():
            self._check_channels(name, channels, known if known > 1 else None)
        self.renormalize = nn.ModuleDict()
        for name, wanted in (normalize or {}).items():
            if name not in networks:
                raise ValueError(
                    f'normalize names the unknown network {name!r}; the networks are '
                    f'{list(networks)}.'
                )
            if not input_normalize:
                raise ValueError(
                    f'normalize of network {name!r} needs to know how the image was normalised: '
                    'give the data preprocessor mean and std, or set input_normalize.'
                )
            for given in (wanted, input_normalize):
                if set(given) != {'mean', 'std'} or len(given['mean']) != len(given['std']):
                    raise ValueError(
                        'a normalisation is dict(mean=…, std=…) with one value a channel, got '
                        f'{dict(given)}.'
                    )
                if not all(value > 0 for value in given['std']):
                    raise ValueError(
                        f'std={list(given["std"])} divides; give numbers greater than 0.'
                    )
            old, channels = dict(input_normalize), self.inputs.get(name, ())
            if known > 1 and channels:
                old = {key: [value[index] for index in channels] for key, value in old.items()}
            if channels and len(wanted['mean']) not in (1, len(channels)):
                raise ValueError(
                    f'normalize of network {name!r} has {len(wanted["mean"])} values, but it reads '
                    f'the channels {channels}; give one value for each, or one for all.'
                )
            self.renormalize[name] = _Renormalize(old, wanted)

    def _check_channels(self, name: str, channels: tuple[int, ...], known: int | None) -> None:
        """Refuse channels of a network, of an image with the number that is known or None."""
        given = f'inputs of network {name!r} are the channels {channels}'
        if name not in self.networks:
            raise ValueError(
                f'inputs names the unknown network {name!r}; the networks are '
                f'{list(self.networks)}.'
            )
        if not channels or not all(type(channel) is int and channel >= 0 for channel in channels):
            raise ValueError(f'{given}; give at least one number from 0 on, as in (0, 1, 2).')
        if known and max(channels) >= known:
            raise ValueError(f'{given}, but the image has only 0 to {known - 1}.')
        if len({*channels}) not in (1, len(channels)):
            raise ValueError(
                f'{given}, some of them twice; give each once, or the same throughout, as in '
                '(3, 3, 3).'
            )
        taken = stem_channels(self.networks[name])
        if taken not in (None, len(channels)):
            raise ValueError(
                f'{given}, {len(channels)} in number, but its backbone takes {taken}; give it '
                f'in_channels={len(channels)}, or other channels.'
            )

    @property
    def image_channels(self) -> int:
        """Channels that an image has at least, for every network to read its own."""
        return max(
            max(self.inputs[name]) + 1 if name in self.inputs else stem_channels(backbone) or 3
            for name, backbone in self.networks.items()
        )

    def forward(self, x: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Extract every network's features.

        Args:
            x: Preprocessed images, ``(N, C, H, W)``.

        Returns:
            Feature pyramids by network, each level ``(N, C_i, H_i, W_i)``.

        Raises:
            ValueError: A backbone returns something else than maps.
            InputError: The images lack a channel that a network reads.
        """
        return {
            name: feature_maps(name, backbone, self._input_of(name, x))
            for name, backbone in self.networks.items()
        }

    def _input_of(self, name: str, x: Tensor) -> Tensor:
        """What a network reads of the images."""
        if name in self.inputs:
            channels = list(self.inputs[name])
            if max(channels) >= x.shape[1]:
                raise InputError(
                    f'network {name!r} reads the channels {channels} of the images, which have '
                    f'only {x.shape[1]}; let the pipeline load them all, or change inputs of the '
                    'backbone.'
                )
            # Not x[:, channels]: the CPU would wait until a GPU has the list.
            x = torch.cat([x[:, channel : channel + 1] for channel in channels], dim=1)
        return self.renormalize[name](x) if name in self.renormalize else x


def stem_channels(backbone: nn.Module) -> int | None:
    """Channels that a backbone's first convolution takes; None without a convolution."""
    stem = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    return stem.in_channels if stem else None


def feature_maps(name: str, backbone: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Extract a network's features.

    Args:
        name: Name of the network, for the message.
        backbone: Its backbone.
        x: What this takes, ``(N, C, H, W)``.

    Returns:
        Its feature pyramid, each level ``(N, C_i, H_i, W_i)``.

    Raises:
        ValueError: The backbone returns something else than maps.
    """
    levels = backbone(x)
    # Some backbones of mmseg return a bare map if they have a single level.
    levels = (levels,) if isinstance(levels, Tensor) else tuple(levels)
    for level in levels:
        if level.ndim != 4:
            raise ValueError(
                f'the backbone of network {name!r} returns a level of shape '
                f'{tuple(level.shape)}, not a feature map (N, C, H, W); choose a backbone that '
                "keeps the image's height and width (of timm's models, with features_only=True)."
            )
    # timm declares the layout, where a model has another one than (N, C, H, W).
    layout = getattr(getattr(backbone, 'timm_model', None), 'output_fmt', 'NCHW')
    return tuple(level.permute(0, 3, 1, 2) for level in levels) if layout == 'NHWC' else levels
