"""Several backbones on one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, ModuleDict
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..cooperation.networks import check_network_names


class _Renormalize(nn.Module):
    """An affine from one normalisation of an image to another, ``(N, 3, H, W)``.

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

    Args:
        networks: Config of every network's backbone, by name.
        normalize: ``dict(mean=…, std=…)`` for the networks that differ from the data preprocessor,
            by name; units as there (RGB, 0 to 255). Defaults to None.
        input_normalize: ``dict(mean=…, std=…)`` that was applied to the image. Needed with
            ``normalize``; :class:`CrossCoopEncoderDecoder` fills it in from its data preprocessor.
            Defaults to None.
        init_cfg: Initialisation of the parameters. Defaults to None; the backbones bring their own.

    Raises:
        ValueError: No network, an impossible name, or an incomplete normalisation.

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
        normalize: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
        input_normalize: Mapping[str, Sequence[float]] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_network_names(networks)
        self.networks = ModuleDict(
            {name: MODELS.build(backbone) for name, backbone in networks.items()}
        )
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
            self.renormalize[name] = _Renormalize(input_normalize, wanted)

    def forward(self, x: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Extract every network's features.

        Args:
            x: Preprocessed images, ``(N, 3, H, W)``.

        Returns:
            Feature pyramids by network, each level ``(N, C_i, H_i, W_i)``.

        Raises:
            ValueError: A backbone returns something else than maps.
        """
        return {
            name: feature_maps(
                name, backbone, self.renormalize[name](x) if name in self.renormalize else x
            )
            for name, backbone in self.networks.items()
        }


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
