"""Attention of every channel to every other."""

from __future__ import annotations

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from .._checks import check_choice, check_positive
from ._common import at_least_float32, check_channels, without_autocast


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

    or with the square of the distance. ``'subtract'`` equals the channel attention of DANet.

    Energies sum H * W products each, beyond the range of float16 at any usual size: they, the
    softmax and the weighted sum are in float32 (float64 for such a map) under autocast and for
    half-precision maps as well. The scale mu multiplies the C x C weights instead of the result.

    Args:
        in_channels: Channels C of the map.
        similarity: ``'subtract'``, which the paper recommends (table 4), or ``'square'``. Defaults
            to ``'subtract'``.

    Attributes:
        scale: The learned mu, shape ``(1,)``; it starts at 0, where the module is the identity.

    Raises:
        ValueError: Bad channels or unknown similarity.

    Example:
        >>> import torch
        >>> attention = ChannelPoolAttention(in_channels=16)
        >>> x = torch.rand(2, 16, 24, 31)
        >>> bool((attention(x) == x).all())
        True
    """

    def __init__(self, *, in_channels: int, similarity: str = 'subtract') -> None:
        super().__init__()
        check_positive('in_channels', in_channels)
        check_choice('similarity', similarity, ('subtract', 'square'))
        self.in_channels = in_channels
        self.similarity = similarity
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: Map, ``(N, C, H, W)``.

        Returns:
            Map in the shape and type of ``x``.

        Raises:
            ValueError: The map does not have ``in_channels`` channels.
        """
        check_channels('ChannelPoolAttention', x, self.in_channels)
        with without_autocast(x.device.type):
            features = at_least_float32(x).flatten(2)
            energy = torch.bmm(features, features.transpose(1, 2))
            distance = energy.amax(dim=2, keepdim=True) - energy
            if self.similarity == 'square':
                distance = distance.square()
            attention = self.scale * distance.softmax(dim=2)
            return torch.baddbmm(features, attention, features).view_as(x).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the arguments."""
        return f'in_channels={self.in_channels}, similarity={self.similarity!r}'
