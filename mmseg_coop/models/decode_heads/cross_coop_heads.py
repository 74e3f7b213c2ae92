"""The methods of the papers: cooperative heads of one kind."""

from __future__ import annotations

from mmseg.registry import MODELS

from .coop_head import CoopHead


@MODELS.register_module()
class CrossCoopASPPHead(CoopHead):
    """DeepLabV3+ heads with cross cooperative connections.

    The proposed method of "Fusion of Different Features by Cross Cooperative Learning for Semantic
    Segmentation" (Ikedo and Hotta, VISAPP 2022), section 3. Its predecessor, its ablations and its
    baselines are settings of this class:

    =============================  ==============================================================
    method                         setting
    =============================  ==============================================================
    ours                           ``topology='cross'``
    conventional                   ``topology='one_way'``
    w/o all path, ensemble         ``topology='none'``
    without Connection 1           ``connections=['aspp', 'aspp_output', 'low_level', 'decoder']``
    without Connection 2           ``connections=['input', 'aspp', 'low_level', 'decoder']``
    single network                 one entry in ``networks``
    =============================  ==============================================================

    Args:
        networks: By name, arguments of :class:`DeepLabV3PlusHead` in which the networks differ.
        **kwargs: Arguments of :class:`CoopHead`, and those of :class:`DeepLabV3PlusHead` that
            all networks share.

    Example:
        >>> import torch
        >>> head = CrossCoopASPPHead(
        ...     networks=dict(
        ...         top=dict(in_channels=32, low_level_in_channels=8),
        ...         bottom=dict(in_channels=16, low_level_in_channels=4),
        ...     ),
        ...     channels=8,
        ...     num_classes=3,
        ... ).eval()
        >>> top = [torch.rand(2, 8, 16, 16), torch.rand(2, 32, 4, 4)]
        >>> bottom = [torch.rand(2, 4, 16, 16), torch.rand(2, 16, 4, 4)]
        >>> {name: tuple(x.shape) for name, x in head(dict(top=top, bottom=bottom)).items()}
        {'top': (2, 3, 16, 16), 'bottom': (2, 3, 16, 16)}
    """

    head_type = 'DeepLabV3PlusHead'


@MODELS.register_module()
class CrossCoopDPAHead(CoopHead):
    """DPANet heads with cooperative paths.

    The predecessor of cross cooperative learning ("Feature Sharing Cooperative Network for Semantic
    Segmentation", Ikedo and Hotta, VISAPP 2021) let two DANets cooperate. DPANet has the layout of
    DANet, so this is its idea on cheaper attention; the sites are those of :class:`DPAHead`.

    Args:
        networks: By name, arguments of :class:`DPAHead` in which the networks differ.
        **kwargs: Arguments of :class:`CoopHead`, and those of :class:`DPAHead` that all
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

    head_type = 'DPAHead'
