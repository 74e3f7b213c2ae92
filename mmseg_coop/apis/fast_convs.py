"""Convolutions whose weights are prepared once, for prediction on a CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from .folding import replace_modules

#: Where Winograd's algorithm takes polynomials, with both signs.
_P, _Q = 3 / 4, 3 / 2


def prepare_convs(model: nn.Module, shapes: Mapping[nn.Conv2d, torch.Size]) -> int:
    """Prepare the convolutions of a model for the images it will see, in place.

    Those that are derived from ``torch.nn.Conv2d``, have hooks, pad with something other than
    zeros, are not on a CPU, or compute in what oneDNN does not on this processor stay as they are.

    Args:
        model: Model whose weights do not change any more.
        shapes: Shape of what each convolution reads most often, ``(N, C, H, W)``.

    Returns:
        How many were prepared.
    """
    fast: dict[nn.Module, nn.Module] = {}
    for conv, shape in shapes.items():
        if _can_be_prepared(conv):
            pays = WinogradConv2d.pays(conv, shape)
            fast[conv] = WinogradConv2d(conv) if pays else PackedConv2d(conv, shape)
    replace_modules(model, fast)
    return len(fast)


def _can_be_prepared(conv: nn.Conv2d) -> bool:
    if not torch.backends.mkldnn.is_available() or conv.weight.device.type != 'cpu':
        return False
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (
        type(conv) is nn.Conv2d
        and conv.weight.dtype in ((torch.float32, torch.bfloat16) if half else (torch.float32,))
        and conv.padding_mode == 'zeros'
        and not isinstance(conv.padding, str)
        and not (conv._forward_hooks or conv._forward_pre_hooks or 'forward' in vars(conv))
    )


class PackedConv2d(nn.Module):
    """Convolution whose weights lie as oneDNN reads them.

    ``torch.nn.Conv2d`` has oneDNN reorder them in every call, and does without oneDNN where a 1x1
    convolution meets a single image and thread. Compiled models call the same operator.

    Args:
        conv: The convolution, on a CPU. It is computed in the type of its weights.
        shape: Shape of what it reads most often, ``(N, C, H, W)``.

    Example:
        >>> import torch
        >>> conv, x = torch.nn.Conv2d(16, 32, 3).requires_grad_(False), torch.rand(1, 16, 8, 8)
        >>> bool(torch.allclose(PackedConv2d(conv, x.shape)(x), conv(x), atol=1e-5))
        True
    """

    def __init__(self, conv: nn.Conv2d, shape: torch.Size) -> None:
        super().__init__()
        geometry = (conv.padding, conv.stride, conv.dilation)
        self.arguments = [*(list(sizes) for sizes in geometry), conv.groups]
        self.shape, self.bias = list(shape), conv.bias
        self.packed = self._pack(conv.weight)

    def _pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self.arguments, self.shape)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: ``(N, in_channels, H, W)``.

        Returns:
            ``(N, out_channels, H', W')``.
        """
        return torch.ops.mkldnn._convolution_pointwise(
            x.to(self.packed.dtype), self.packed, self.bias, *self.arguments, 'none', [], ''
        )

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights can be neither copied nor saved.
        return {**self.__dict__, 'packed': self.packed.to_dense()}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.packed = self._pack(self.packed)


class WinogradConv2d(nn.Module):
    r"""3x3 convolution by 36 products for 16 pixels, where the definition takes 144.

    For every tile x of 6x6 pixels, 4 apart, and every filter w, the 4x4 results are

    .. math::
        A^T \left( (G w G^T) \odot (B^T x B) \right) A

    (Lavin and Gray, `CVPR 2016 <https://arxiv.org/abs/1509.09308>`_, equation 8), summed over input
    channels before :math:`A` is applied, so that the products are those of 36 pairs of matrices.
    The polynomials behind it are taken at 0, ±3/4, ±3/2 and infinity, where its rounding in float32
    is that of PyTorch's convolution of maps with the channels last; at 0, ±1, ±2 it is 4 times as
    large.

    Args:
        conv: A convolution that :meth:`pays` holds for.

    Example:
        >>> import torch
        >>> conv = torch.nn.Conv2d(16, 8, 3, padding=2, dilation=2).requires_grad_(False)
        >>> x = torch.rand(2, 16, 7, 5)
        >>> bool(torch.allclose(WinogradConv2d(conv)(x), conv(x), atol=1e-5))
        True
    """

    #: Tiles at once, whose transforms then stay in a processor's cache.
    TILES = 150

    weight: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        at = torch.tensor([0, _P, -_P, _Q, -_Q], dtype=torch.float64)
        rows = [point ** torch.arange(3) / (point - at[at != point]).prod() for point in at]
        g = torch.stack([*rows, at.new_tensor([0, 0, 1])])
        weight = torch.einsum('ij,ocjk,lk->ilco', g, conv.weight.double(), g)
        self.register_buffer('weight', weight.flatten(0, 1).to(conv.weight))
        self.bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        self.dilation = conv.dilation[0]

    @staticmethod
    def pays(conv: nn.Conv2d, shape: torch.Size) -> bool:
        """Whether fewer products outweigh the transforms: with many channels and tiles they do."""
        d = conv.dilation[0]
        tiles = shape[0] * math.prod(d * -(-size // (4 * d)) for size in shape[2:])
        large = tiles >= 32 and min(conv.in_channels, conv.out_channels) >= 128 * d
        geometry = (conv.kernel_size, conv.stride, conv.groups)
        dense = geometry == ((3, 3), (1, 1), 1) and conv.padding == conv.dilation in (
            (1, 1),
            (2, 2),
        )
        return large and dense and conv.weight.dtype == torch.float32

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: ``(N, in_channels, H, W)``.

        Returns:
            ``(N, out_channels, H, W)``.
        """
        (number, _, height, width), d = x.shape, self.dilation
        rows, columns = (-(-size // (4 * d)) for size in (height, width))
        x = F.pad(x, (d, d * (4 * columns + 1) - width, d, d * (4 * rows + 1) - height))
        # With a dilation every d-th row and column are a map of their own.
        x = x.permute(0, 2, 3, 1).unflatten(2, (-1, d)).unflatten(1, (-1, d))
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        result = x.new_empty(len(x), 4 * rows, 4 * columns, self.weight.shape[2])
        step = max(1, self.TILES // (len(x) * columns))
        for row in range(0, rows, step):
            strip = x[:, 4 * row : 4 * (row + step) + 2]
            self._convolve(strip, result[:, 4 * row : 4 * (row + step)])
        result = result.unflatten(0, (number, d, d)).permute(0, 3, 1, 4, 2, 5)
        return result.flatten(3, 4).flatten(1, 2)[:, :height, :width].permute(0, 3, 1, 2)

    def _convolve(self, x: Tensor, result: Tensor) -> None:
        """Convolve a padded strip ``(N, H + 2, W + 2, in_channels)`` into ``(N, H, W, …)``."""
        number, height, width, channels = result.shape
        half = x.new_empty(6, number, height // 4, width + 2, x.shape[3])
        _to_tiles([x[:, i : i + height - 3 : 4] for i in range(6)], half)
        tiles = x.new_empty(6, 6, number, height // 4, width // 4, x.shape[3])
        _to_tiles([half[:, :, :, j : j + width - 3 : 4] for j in range(6)], tiles.transpose(0, 1))
        del half  # it may be here that a model needs the most memory
        products = torch.bmm(tiles.view(36, -1, x.shape[3]), self.weight)
        shape = (*tiles.shape[:5], channels)
        del tiles
        for i, row in enumerate(_from_tiles(products.view(shape))):
            for j, pixel in enumerate(_from_tiles(row)):
                torch.add(pixel, self.bias, out=result[:, i::4, j::4])


def _to_tiles(x: Sequence[Tensor], result: Tensor) -> None:
    """Multiply the six rows of tiles by ``B^T``."""
    for i, (first, second, third) in ((0, x[::2]), (5, x[1::2])):
        torch.sub(third, second, alpha=_P**2 + _Q**2, out=result[i])
        result[i].add_(first, alpha=_P**2 * _Q**2)
    for i, point, other in ((1, _P, _Q), (3, _Q, _P)):
        even = torch.sub(x[4], x[2], alpha=other**2)
        odd = torch.sub(x[3], x[1], alpha=other**2)
        torch.add(even, odd, alpha=point, out=result[i])
        torch.sub(even, odd, alpha=point, out=result[i + 1])


def _from_tiles(x: Tensor) -> tuple[Tensor, ...]:
    """Multiply the six rows of products by ``A^T``."""
    even, odd = x[1] + x[2], x[1] - x[2]
    even_2, odd_2 = x[3] + x[4], x[3] - x[4]
    return (
        (x[0] + even).add_(even_2),
        (_P * odd).add_(odd_2, alpha=_Q),
        (_P**2 * even).add_(even_2, alpha=_Q**2),
        torch.add(x[5], odd, alpha=_P**3).add_(odd_2, alpha=_Q**3),
    )
