"""DPANet heads that cooperate at every layer."""

from __future__ import annotations

from mmseg.registry import MODELS

from .coop_head import BaseCoopHead
from .dpa_head import DPAHead


@MODELS.register_module()
class CrossCoopDPAHead(BaseCoopHead):
    """DPANet heads with cooperative paths.

    The predecessor of cross cooperative learning ("Feature Sharing Cooperative Network for Semantic
    Segmentation", Ikedo and Hotta, VISAPP 2021) let two DANets cooperate. DPANet has the layout of
    DANet, so this is its idea on cheaper attention; the sites are those of :class:`DPAHead`.

    Args:
        networks: By name, arguments of :class:`DPAHead` in which the networks differ.
        **kwargs: Arguments of :class:`BaseCoopHead`, and those of :class:`DPAHead` that all
            networks share.

    Example:
        >>> import torch
        >>> head = CrossCoopDPAHead(
        ...     networks=dict(top=dict(in_channels=32), bottom=dict(in_channels=16)),
        ...     channels=8,
        ...     num_classes=3,
        ... ).eval()
        >>> logits = head(dict(top=[torch.rand(1, 32, 8, 8)], bottom=[torch.rand(1, 16, 8, 8)]))
        >>> {name: tuple(x.shape) for name, x in logits.items()}
        {'top': (1, 3, 8, 8), 'bottom': (1, 3, 8, 8)}
    """

    head_class = DPAHead
