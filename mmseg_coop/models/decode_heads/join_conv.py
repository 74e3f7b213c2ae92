"""A convolution of two maps, one of which is small, that enlarges neither map nor cost."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


class JoinConv2d(nn.Conv2d):
    r"""Convolution of a small map, resized to that of a large one, and the large one joined.

    It is ``conv(torch.cat([resize(small, large.shape[2:]), large], dim=1))``, but for rounding. A
    convolution is linear and so is bilinear interpolation, and either can come first:

    .. math::
        \sum_t W_t \, S_t (R x R^T) = \sum_{t = (u, v)} (S_u R) \, (W_t x) \, (S_v R)^T

    for the weights :math:`W_t` and the shift :math:`S_t` of every tap t. So the weights multiply
    the few pixels of the small map, and the shifts are part of the interpolation. In DeepLabV3+,
    where a map at stride 16 meets one at stride 4, this takes a seventh of the operations, and the
    resized and the joined map are neither made nor kept for the gradient.

    Args:
        *args: Arguments of ``torch.nn.Conv2d``; channels are those of both maps, the small one
            first. Only stride 1, an odd size and as much padding as keeps the map's size fit.
        align_corners: As in the interpolation. Defaults to False.
        **kwargs: The same.

    Example:
        >>> import torch
        >>> conv = JoinConv2d(16 + 4, 8, 3, padding=1)
        >>> conv((torch.rand(2, 16, 5, 6), torch.rand(2, 4, 17, 21))).shape
        torch.Size([2, 8, 17, 21])
    """

    def __init__(self, *args: Any, align_corners: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.align_corners = align_corners

    @override
    def forward(self, maps: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """Convolve.

        Args:
            maps: The small map ``(N, C_1, h, w)`` and the large one ``(N, C_2, H, W)``.

        Returns:
            The result, ``(N, out_channels, H, W)``.
        """
        small, large = maps
        (channels, height, width), size = small.shape[1:], self.kernel_size[0]
        weight = self.weight.permute(2, 3, 0, 1)
        # (N, h, w, tap's row, tap's column, out_channels), and each tap beside the pixels it is at;
        # under one name, so that without a gradient no step's result outlives the next.
        x = F.conv2d(small, weight[..., :channels].flatten(0, 2)[..., None, None])
        x = x.permute(0, 2, 3, 1).unflatten(3, (size, size, -1))
        x = x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(0, 2)
        x = torch.matmul(self._interpolation(width, large.shape[3], small), x)
        x = x.unflatten(0, (-1, size * height)).flatten(2)
        x = torch.matmul(self._interpolation(height, large.shape[2], small), x)
        x = x.unflatten(2, (-1, self.out_channels)).permute(0, 3, 1, 2)
        rest = weight[..., channels:].permute(2, 3, 0, 1)
        return F.conv2d(large, rest, self.bias, padding=self.padding).add_(x)

    def _interpolation(self, length: int, target: int, like: Tensor) -> Tensor:
        """What every tap at each pixel takes of a row or column, ``(target, taps * length)``."""
        precise = torch.promote_types(like.dtype, torch.float32)
        identity = torch.eye(length, dtype=precise, device=like.device).unsqueeze(0)
        weights = F.interpolate(
            identity, size=target, mode='linear', align_corners=self.align_corners
        )
        taps = self.kernel_size[0]
        padded = F.pad(weights[0].to(like.dtype), (taps // 2, taps // 2))
        shifted = [padded[:, tap : tap + target] for tap in range(taps)]
        return torch.cat(shifted).transpose(0, 1)
