"""Attention of every channel to every other."""

from __future__ import annotations

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn
from typing_extensions import override

from .._checks import check_choice, check_positive
from ._common import at_least_float32, check_map, convolve, without_autocast


@MODELS.register_module()
class ChannelPoolAttention(nn.Module):
    r"""Channel pool attention (CPA) of `DPANet <https://arxiv.org/abs/2210.05437>`_, section 3.3.

    The channels' energies D are pooled by their maximum, and the distance to it says how much a
    channel takes of another (equations 10 to 14, with the exponential that the denominator of
    equation 13 lacks):

    .. math::
        D = X X^T, \qquad \mathcal C_{ji} = \max_k D_{jk} - D_{ji}, \qquad
        C_{ji} = \frac{\exp \mathcal C_{ji}}{\sum_{i=1}^{C} \exp \mathcal C_{ji}}, \qquad
        \hat X_j = \mu \sum_{i=1}^{C} C_{ji} X_i + X_j

    or with the square of the distance. ``'subtract'`` equals the channel attention of DANet. The
    paper's maximum is 1 x 1 x C; with ``maximum='column'`` it is broadcast as that shape says,
    C_ji = max_k D_ki - D_ji, so that each channel i is measured by its own largest product.

    Energies sum H * W products each, beyond the range of float16 at any usual size: they, the
    softmax and the weighted sum are in float32 (float64 for such a map) under autocast and for
    half-precision maps as well. The scale mu multiplies the C x C weights instead of the result.

    Args:
        in_channels: Channels C of the map.
        similarity: ``'subtract'``, which the paper recommends (table 4), or ``'square'``. Defaults
            to ``'subtract'``.
        maximum: Whose largest energy the distance is measured from: ``'row'``, channel j's, or
            ``'column'``, channel i's. Defaults to ``'row'``.
        qkv: Where queries, keys and values come from. ``'identity'``: the map itself, which makes D
            symmetric, as the paper has it. ``'conv'``: 1x1 convolutions of C channels, as in "we
            generate {Q, K, V}". Defaults to ``'identity'``.

    Attributes:
        query: The 1x1 convolution of the queries, None with ``qkv='identity'``.
        key: The same of the keys.
        value: The same of the values.
        scale: The learned mu, shape ``(1,)``; it starts at 0, where the module is the identity.

    Raises:
        ValueError: Bad channels or an unknown option; a map that does not have ``in_channels``.

    Example:
        >>> import torch
        >>> attention = ChannelPoolAttention(in_channels=16)
        >>> x = torch.rand(2, 16, 24, 31)
        >>> bool((attention(x) == x).all())
        True
    """

    query: nn.Conv2d | None
    key: nn.Conv2d | None
    value: nn.Conv2d | None

    def __init__(
        self,
        in_channels: int,
        *,
        similarity: str = 'subtract',
        maximum: str = 'row',
        qkv: str = 'identity',
    ) -> None:
        super().__init__()
        check_positive('in_channels', in_channels)
        check_choice('similarity', similarity, ('subtract', 'square'))
        check_choice('maximum', maximum, ('row', 'column'))
        check_choice('qkv', qkv, ('identity', 'conv'))
        self.in_channels = in_channels
        self.similarity = similarity
        self.maximum = maximum
        self.query = self.key = self.value = None
        if qkv == 'conv':
            self.query = nn.Conv2d(in_channels, in_channels, 1)
            self.key = nn.Conv2d(in_channels, in_channels, 1)
            self.value = nn.Conv2d(in_channels, in_channels, 1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend over a map, ``(N, C, H, W)``; the result has its shape and its type."""
        check_map('ChannelPoolAttention', x, self.in_channels)
        with without_autocast(x.device.type):
            features = at_least_float32(x).flatten(2)
            query, key, value = [
                features if conv is None else convolve(conv, features.unsqueeze(3)).squeeze(3)
                for conv in (self.query, self.key, self.value)
            ]
            energy = torch.bmm(query, key.transpose(1, 2))
            maximum = energy.amax(dim=2 if self.maximum == 'row' else 1, keepdim=True)
            distance = maximum - energy
            if self.similarity == 'square':
                distance = distance.square()
            attention = self.scale * distance.softmax(dim=2)
            return torch.baddbmm(features, attention, value).view_as(x).to(x.dtype)

    @override
    def extra_repr(self) -> str:
        return (
            f'in_channels={self.in_channels}, similarity={self.similarity!r}, '
            f'maximum={self.maximum!r}'
        )
