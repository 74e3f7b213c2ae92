"""Pyramid pooling into a fixed number of anchors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn
from typing_extensions import override

from .._checks import check_all_positive, check_choice
from ._common import at_least_float32, check_map, without_autocast

#: Whether torch.compile or torch.export records; torch < 2.2 cannot be asked.
is_compiling = getattr(torch.compiler, 'is_compiling', lambda: True)
#: Most sizes of maps, of one axis, whose averages a module keeps.
MOST_KEPT = 16


@MODELS.register_module()
class PoolUnit(nn.Module):
    """Pools a map adaptively to an ``n x n`` grid for every size ``n`` and lines up all grid cells.

    The Pool Unit of `DPANet <https://arxiv.org/abs/2210.05437>`_ (section 3.2, figure 3). It has no
    parameters. It equals ``torch.nn.functional.adaptive_avg_pool2d`` or ``adaptive_max_pool2d`` at
    each size, also where sizes do not divide the map or exceed it, when cells overlap.

    Averaging is linear and works on rows and columns separately: one matrix product pools the rows
    for all sizes at once, a small one a size pools the columns. This is faster than a pass over the
    map for every size, and unlike adaptive pooling it can be exported to ONNX at any map size.

    Args:
        sizes: Sides n of the grids, e.g. ``(1, 4, 8, 10, 12)``.
        pooling: ``'avg'`` or ``'max'`` of each cell; the paper does not say. Defaults to ``'avg'``.

    Raises:
        ValueError: Empty or non-positive sizes, or unknown pooling; what is no map.

    Example:
        >>> import torch
        >>> pool = PoolUnit(sizes=(1, 4, 8, 10, 12))
        >>> pool(torch.rand(2, 16, 24, 31)).shape
        torch.Size([2, 16, 325])
    """

    bin_index: Tensor
    bin_count: Tensor

    def __init__(self, sizes: Sequence[int], *, pooling: str = 'avg') -> None:
        super().__init__()
        check_all_positive('sizes', sizes, example='(1, 4, 8, 10, 12)')
        check_choice('pooling', pooling, ('avg', 'max'))
        self.sizes = list(sizes)
        self.pooling = pooling
        # The bins of one axis for all sizes, one below the other: bin i of n.
        bins = torch.tensor([(i, n) for n in sizes for i in range(n)])
        self.register_buffer('bin_index', bins[:, :1], persistent=False)
        self.register_buffer('bin_count', bins[:, 1:], persistent=False)
        self._kept: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    @property
    def num_anchors(self) -> int:
        """The number T of grid cells (equation 7)."""
        return sum(n * n for n in self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Pool a map, ``(N, C, H, W)``, in float32 at least.

        The anchors, ``(N, C, T)`` in its type, are the grids in the order of ``sizes``, each row by
        row.
        """
        check_map('PoolUnit', x)
        with without_autocast(x.device.type):
            features = at_least_float32(x)
            if self.pooling == 'avg':
                anchors = self._average(features)
            elif torch.onnx.is_in_onnx_export():
                anchors = self._gathered_maximum(features)
            else:
                grids = [F.adaptive_max_pool2d(features, n).flatten(2) for n in self.sizes]
                anchors = torch.cat(grids, dim=2)
            return anchors.to(x.dtype)

    def _average(self, x: Tensor) -> Tensor:
        rows, columns = self._weights(x.shape[2], x.dtype), self._weights(x.shape[3], x.dtype)
        if x.stride(3) != 1 and x.stride(1) == 1:
            # channels_last: pixels with all their channels are summed; the other way would copy
            pixels = x.permute(0, 2, 3, 1)
            stripes = torch.matmul(rows, pixels.flatten(2)).unflatten(2, (-1, x.shape[1]))
            levels = zip(columns.split(self.sizes), stripes.split(self.sizes, dim=1))  # noqa: B905
            grids = [torch.matmul(column, stripe).flatten(1, 2) for column, stripe in levels]
            return torch.cat(grids, dim=1).transpose(1, 2)
        stripes = torch.matmul(rows, x)
        columns = columns.transpose(0, 1)
        # torch.compile of torch 2.1 knows no zip(strict=True)
        levels = zip(stripes.split(self.sizes, dim=2), columns.split(self.sizes, dim=1))  # noqa: B905
        grids = [torch.matmul(stripe, column).flatten(2) for stripe, column in levels]
        return torch.cat(grids, dim=2)

    def _gathered_maximum(self, x: Tensor) -> Tensor:
        """Pool without an operator for adaptive pooling, which ONNX lacks; its gradient is slow."""
        grids = []
        for n in self.sizes:
            grid, index = x, torch.arange(n, device=x.device).unsqueeze(1)
            for dim in (2, 3):
                length = x.shape[dim]
                start, end = _bounds(index, n, length)
                # No bin is longer than this; shorter ones repeat their last position.
                steps = torch.arange((length + n - 1) // n + 1, device=x.device)
                positions = torch.minimum(start + steps, end - 1).flatten()
                grid = grid.index_select(dim, positions).unflatten(dim, (n, -1)).amax(dim + 1)
            grids.append(grid.flatten(2))
        return torch.cat(grids, dim=2)

    def _weights(self, length: int, dtype: torch.dtype) -> Tensor:
        """Averages over the bins of an axis, ``(number of bins, length)``.

        Kept for the next map of this size: a GPU needs more time to launch what builds them than
        for all products. What is recorded builds them anew, or it would be tied to one size.
        """
        if torch.jit.is_tracing() or is_compiling():
            return self._build_weights(length, dtype)
        key = (length, dtype, self.bin_index.device)
        weights = self._kept.get(key)
        if weights is None:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            with torch.inference_mode(False):  # or no training could use them
                self._kept[key] = weights = self._build_weights(length, dtype)
        return weights

    def _build_weights(self, length: int, dtype: torch.dtype) -> Tensor:
        start, end = _bounds(self.bin_index, self.bin_count, length)
        position = torch.arange(length, device=start.device)
        inside = (position >= start) & (position < end)
        return inside.to(dtype) / (end - start).to(dtype)

    @override
    def extra_repr(self) -> str:
        return f'sizes={self.sizes}, pooling={self.pooling!r}'


def _bounds(index: Tensor, count: Tensor | int, length: int) -> tuple[Tensor, Tensor]:
    """First position of bin ``index`` of ``count`` on an axis, and the one behind its last."""
    start = index * length // count
    end = ((index + 1) * length + count - 1) // count  # rounded up
    return start, end
