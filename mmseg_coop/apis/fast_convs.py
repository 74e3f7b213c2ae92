"""Convolutions whose weights are prepared once, for prediction on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from .folding import replace_modules


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
            pays = WinogradConv2d.pays(conv)
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
    r"""3x3 convolution by 16 products for 4 pixels, where the definition takes 36.

    For every tile x of 4x4 pixels, 2 apart, and every filter w, the 2x2 results are

    .. math::
        A^T \left( (G w G^T) \odot (B^T x B) \right) A

    (Lavin and Gray, `CVPR 2016 <https://arxiv.org/abs/1509.09308>`_, equation 8), summed over input
    channels before :math:`A` is applied, so that the products are those of 16 pairs of matrices.
    In float32 its rounding is that of any convolution.

    Args:
        conv: A convolution that :meth:`pays` holds for.

    Example:
        >>> import torch
        >>> conv = torch.nn.Conv2d(16, 8, 3, padding=1).requires_grad_(False)
        >>> x = torch.rand(2, 16, 7, 5)
        >>> bool(torch.allclose(WinogradConv2d(conv)(x), conv(x), atol=1e-5))
        True
    """

    #: Tiles at once, whose transforms then stay in a processor's cache.
    TILES = 300

    weight: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        g = conv.weight.new_tensor([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]).double() / 2
        weight = torch.einsum('ij,ocjk,lk->ilco', g, conv.weight.double(), g)
        self.register_buffer('weight', weight.flatten(0, 1).to(conv.weight))
        self.bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias

    @staticmethod
    def pays(conv: nn.Conv2d) -> bool:
        """Whether fewer products outweigh the transforms of maps; with few channels they do not."""
        geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
        wide = min(conv.in_channels, conv.out_channels) >= 256
        exact = conv.weight.dtype == torch.float32
        return wide and exact and geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: ``(N, in_channels, H, W)``.

        Returns:
            ``(N, out_channels, H, W)``.
        """
        (number, _, height, width), channels = x.shape, self.weight.shape[2]
        rows, columns = (height + 1) // 2, (width + 1) // 2
        x = F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2)).permute(0, 2, 3, 1)
        result = x.new_empty(number, 2 * rows, 2 * columns, channels)
        step = max(1, self.TILES // (number * columns))
        for row in range(0, rows, step):
            strip = x[:, 2 * row : 2 * (row + step) + 2]
            self._convolve(strip, result[:, 2 * row : 2 * (row + step)])
        return result[:, :height, :width].permute(0, 3, 1, 2)

    def _convolve(self, x: Tensor, result: Tensor) -> None:
        """Convolve a padded strip ``(N, H + 2, W + 2, in_channels)`` into ``(N, H, W, …)``."""
        number, height, width, channels = result.shape
        half = x.new_empty(4, number, height // 2, width + 2, x.shape[3])
        _to_tiles([x[:, i : i + height - 1 : 2] for i in range(4)], half)
        tiles = x.new_empty(4, 4, number, height // 2, width // 2, x.shape[3])
        _to_tiles([half[:, :, :, j : j + width - 1 : 2] for j in range(4)], tiles.transpose(0, 1))
        products = torch.bmm(tiles.view(16, -1, x.shape[3]), self.weight)
        for i, row in enumerate(_from_tiles(products.view(*tiles.shape[:5], channels))):
            for j, pixel in enumerate(_from_tiles(row)):
                torch.add(pixel, self.bias, out=result[:, i::2, j::2])


def _to_tiles(x: Sequence[Tensor], result: Tensor) -> None:
    """Multiply the four rows of tiles by ``B^T``."""
    torch.sub(x[0], x[2], out=result[0])
    torch.add(x[1], x[2], out=result[1])
    torch.sub(x[2], x[1], out=result[2])
    torch.sub(x[1], x[3], out=result[3])


def _from_tiles(x: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply the four rows of products by ``A^T``."""
    return (x[0] + x[1]).add_(x[2]), (x[1] - x[2]).sub_(x[3])
