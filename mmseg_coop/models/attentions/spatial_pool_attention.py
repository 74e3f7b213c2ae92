"""Attention of every pixel to the anchors of a pooled pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from .._checks import check_all_positive, check_choice, check_positive
from ._common import at_least_float32, check_map, convolve, without_autocast
from .pool_unit import PoolUnit


@MODELS.register_module()
class SpatialPoolAttention(nn.Module):
    r"""Spatial pool attention (SPA) of `DPANet <https://arxiv.org/abs/2210.05437>`_, section 3.2.

    Every pixel j of the map attends to T anchors, keys pooled at one set of sizes and values pooled
    at another (equations 8 and 9):

    .. math::
        M_{ij} = \frac{\exp(K_i \cdot Q_j)}{\sum_{i=1}^{T} \exp(K_i \cdot Q_j)}, \qquad
        \hat X_j = \lambda \sum_{i=1}^{T} M_{ij} V_i + X_j

    It costs O(CNT) where a non-local block costs O(CN^2) on N = H * W pixels. Three reorderings,
    exact but for rounding, save most of the rest: averaging is linear and keeps constants, so the
    1x1 convolutions of keys and values run on the T anchors instead of the N pixels; lambda scales
    the T values instead of the N results; and the sum with X is part of the last product. A maximum
    is not linear: with ``pooling='max'`` keys and values are projected first, then pooled.

    All of it is in float32 (float64 for such a map) under autocast and for half-precision maps as
    well, for energies and gradients of large maps are beyond the range of float16.

    Args:
        in_channels: Channels C of the map.
        key_sizes: Pool sizes of the keys. Defaults to (1, 4, 8, 10, 12), the paper's even ones.
        value_sizes: Pool sizes of the values, with as many anchors. Defaults to (1, 5, 7, 9, 13),
            the paper's odd ones.
        qkv: Where queries, keys and values come from. ``'identity'``: the map itself, which leaves
            lambda as the only parameter, as the paper's "0 parameters" asks. ``'conv'``: 1x1
            convolutions, as its figure 4 draws. Defaults to ``'identity'``.
        query_channels: Channels of query and key with ``qkv='conv'``. Defaults to None: C / 8.
        pooling: ``'avg'`` or ``'max'``. Defaults to ``'avg'``.
        scaled: Whether energies are divided by the square root of the query's channels. Defaults
            to False, as in equation 8.

    Attributes:
        query: The 1x1 convolution of the queries, None with ``qkv='identity'``.
        key: The same of the keys.
        value: The same of the values.
        scale: The learned lambda, shape ``(1,)``; it starts at 0, where the module is the identity.

    Raises:
        ValueError: Bad channels or pool sizes, unequal numbers of anchors, unknown options; a map
            that does not have ``in_channels``.

    Example:
        >>> import torch
        >>> attention = SpatialPoolAttention(16)
        >>> x = torch.rand(2, 16, 24, 31)
        >>> bool((attention(x) == x).all())
        True
        >>> [name for name, _ in attention.named_parameters()]
        ['scale']
    """

    query: nn.Conv2d | None
    key: nn.Conv2d | None
    value: nn.Conv2d | None

    def __init__(
        self,
        in_channels: int,
        *,
        key_sizes: Sequence[int] = (1, 4, 8, 10, 12),
        value_sizes: Sequence[int] = (1, 5, 7, 9, 13),
        qkv: str = 'identity',
        query_channels: int | None = None,
        pooling: str = 'avg',
        scaled: bool = False,
    ) -> None:
        super().__init__()
        check_positive('in_channels', in_channels)
        check_choice('qkv', qkv, ('identity', 'conv'))
        if query_channels is not None:
            check_positive('query_channels', query_channels)
            if qkv == 'identity':
                raise ValueError(
                    f"query_channels={query_channels} is given, but with qkv='identity' the "
                    "queries have the map's channels; leave it out or set qkv='conv'."
                )
        check_all_positive('key_sizes', key_sizes, example='(1, 4, 8, 10, 12)')
        check_all_positive('value_sizes', value_sizes, example='(1, 5, 7, 9, 13)')
        self.in_channels = in_channels
        self.pool_keys = PoolUnit(sizes=key_sizes, pooling=pooling)
        self.pool_values = PoolUnit(sizes=value_sizes, pooling=pooling)
        # Where both pool the same map, one product over it takes three quarters of the time of two.
        self.pool = PoolUnit(sizes=[*key_sizes, *value_sizes], pooling=pooling)
        if self.pool_keys.num_anchors != self.pool_values.num_anchors:
            raise ValueError(
                f'key_sizes={tuple(key_sizes)} give {self.pool_keys.num_anchors} anchors and '
                f'value_sizes={tuple(value_sizes)} {self.pool_values.num_anchors}; choose sizes '
                'whose squares have the same sum.'
            )
        self.query = self.key = self.value = None
        if qkv == 'conv':
            query_channels = query_channels or max(in_channels // 8, 1)
            self.query = nn.Conv2d(in_channels, query_channels, 1)
            self.key = nn.Conv2d(in_channels, query_channels, 1)
            self.value = nn.Conv2d(in_channels, in_channels, 1)
        self.energy_scale = (query_channels or in_channels) ** -0.5 if scaled else 1.0
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend over a map, ``(N, C, H, W)``; the result has its shape and its type."""
        check_map('SpatialPoolAttention', x, self.in_channels)
        with without_autocast(x.device.type):
            features = at_least_float32(x)
            query, keys, values = self._project(features)
            # (N, T, H * W), the paper's M: on the CPU faster than its transpose.
            attention = torch.bmm((self.energy_scale * keys).transpose(1, 2), query.flatten(2))
            attention = attention.softmax(dim=1)
            out = torch.baddbmm(features.flatten(2), self.scale * values, attention)
            return out.view_as(x).to(x.dtype)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(N, C_q, H, W)``, keys ``(N, C_q, T)`` and values ``(N, C, T)``."""
        if self.query is None or self.key is None or self.value is None:
            return x, *self._pool(x)
        query = convolve(self.query, x)
        if self.pool_keys.pooling == 'max':
            keys = self.pool_keys(convolve(self.key, x))
            return query, keys, self.pool_values(convolve(self.value, x))
        keys, values = self._pool(x)
        keys = convolve(self.key, keys.unsqueeze(3)).squeeze(3)
        return query, keys, convolve(self.value, values.unsqueeze(3)).squeeze(3)

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.pool_values.sizes == self.pool_keys.sizes:
            keys = self.pool_keys(x)
            return keys, keys
        keys, values = self.pool(x).chunk(2, dim=2)
        return keys, values
