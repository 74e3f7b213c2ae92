"""The decode head of DPANet: spatial and channel pool attention side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from mmseg.utils import SampleList, add_prefix
from torch import Tensor, nn
from typing_extensions import override

from .._checks import check_choice
from ..attentions import ChannelPoolAttention, SpatialPoolAttention
from ..cooperation import Steps
from .cooperative_decode_head import CooperativeDecodeHead

BRANCHES = ('spa', 'cpa')
#: The outputs, each with a classifier and a loss: both branches together, then either alone.
OUTPUTS = ('fused', *BRANCHES)


class AttentionBranch(BaseModule):
    """An attention with up to two 3x3 convolutions, and a classifier for the branch alone.

    Args:
        in_channels: Channels of the backbone's output.
        channels: Channels of the branch's output.
        width: Channels of the attention: ``in_channels`` or, if a convolution comes first,
            ``channels``.
        attention: The attention.
        convolutions: As in :class:`DPAHead`.
        num_outputs: Channels of the branch's classifier, 0 for none.
        **kwargs: ``conv_cfg``, ``norm_cfg`` and ``act_cfg`` of the convolutions.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        width: int,
        attention: torch.nn.Module,
        convolutions: str,
        num_outputs: int,
        **kwargs: Any,
    ) -> None:
        classifier = dict(type='Normal', std=0.01, override=dict(name='conv_seg'))
        super().__init__(classifier if num_outputs else None)
        self.conv_in = self.conv_out = None
        if convolutions == 'both':
            self.conv_in = ConvModule(in_channels, channels, 3, padding=1, **kwargs)
        self.attention = attention
        if convolutions != 'none':
            self.conv_out = ConvModule(width, channels, 3, padding=1, **kwargs)
        self.conv_seg = nn.Conv2d(channels, num_outputs, 1) if num_outputs else None


@MODELS.register_module()
class DPAHead(CooperativeDecodeHead):
    """Decode head of `DPANet <https://arxiv.org/abs/2210.05437>`_ (figure 2).

    Two branches, a :class:`SpatialPoolAttention` and a :class:`ChannelPoolAttention`, each between
    two 3x3 convolutions as in DANet, are joined and classified. The convolutions have 23.6 M
    parameters behind 2048 channels; ``convolutions='none'`` leaves them out. For the "multi-loss on
    the final outputs" (section 4.1.2) each branch has a classifier of its own as well, which runs
    in training mode only; losses then carry the output's name, such as ``spa.loss_ce``.

    Networks cooperate at the sites ``input`` (the head's input), ``attention_input`` (after the
    first convolution), ``attention`` and ``attention_output`` (after the second convolution), the
    last three once a branch, the spatial branch first. Without a convolution its site is missing.

    Args:
        in_channels: Channels of the backbone's output.
        channels: Channels of each branch. Defaults to 512.
        convolutions: Those of 3x3 in each branch. ``'both'``: one before the attention, which
            reduces ``in_channels`` to ``channels``, and one behind it. ``'after'``: the one behind
            alone, so that the attention works on the backbone's output itself, at the width of
            table 1. ``'none'``: as section 3.1 reads, where the attentions' outputs themselves are
            joined; the branches keep ``in_channels``, and ``channels`` has no effect. Defaults to
            ``'both'``.
        attentions: Those that work; a branch without its attention keeps its convolutions and its
            classifier. Defaults to ``('spa', 'cpa')``.
        branch_fusion: How the branches are joined: ``'concat'``, as the caption of figure 2 says,
            or ``'sum'``, as in DANet. Defaults to ``'concat'``.
        key_sizes: See :class:`SpatialPoolAttention`. Defaults to (1, 4, 8, 10, 12).
        value_sizes: See :class:`SpatialPoolAttention`. Defaults to (1, 5, 7, 9, 13).
        qkv: See :class:`SpatialPoolAttention`. Defaults to ``'identity'``.
        query_channels: See :class:`SpatialPoolAttention`. Defaults to None.
        pooling: See :class:`SpatialPoolAttention`. Defaults to ``'avg'``.
        scaled: See :class:`SpatialPoolAttention`. Defaults to False.
        similarity: See :class:`ChannelPoolAttention`. Defaults to ``'subtract'``.
        maximum: See :class:`ChannelPoolAttention`. Defaults to ``'row'``.
        channel_qkv: ``qkv`` of :class:`ChannelPoolAttention`. Defaults to ``'identity'``.
        loss_weights: Weights of the losses of the outputs ``fused``, ``spa`` and ``cpa``; what is
            left out weighs 1. A branch of weight 0 has no classifier: ``dict(spa=0, cpa=0)`` leaves
            the fused loss, to go with an auxiliary head such as mmseg's ``FCNHead``. Defaults to
            None: 1 each.
        **kwargs: Further arguments of mmseg's ``BaseDecodeHead``, ``num_classes`` above all.
            ``norm_cfg`` defaults to ``dict(type='BN')`` here.

    Raises:
        ValueError: Unknown option, bad pool sizes, or weights that leave nothing to train.

    Example:
        >>> import torch
        >>> head = DPAHead(in_channels=64, channels=16, num_classes=19).eval()
        >>> head([torch.rand(1, 64, 24, 24)]).shape
        torch.Size([1, 19, 24, 24])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int = 512,
        convolutions: str = 'both',
        attentions: Sequence[str] = BRANCHES,
        branch_fusion: str = 'concat',
        key_sizes: Sequence[int] = (1, 4, 8, 10, 12),
        value_sizes: Sequence[int] = (1, 5, 7, 9, 13),
        qkv: str = 'identity',
        query_channels: int | None = None,
        pooling: str = 'avg',
        scaled: bool = False,
        similarity: str = 'subtract',
        maximum: str = 'row',
        channel_qkv: str = 'identity',
        loss_weights: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice('convolutions', convolutions, ('both', 'after', 'none'))
        for attention in attentions:
            check_choice('attentions', attention, BRANCHES)
        check_choice('branch_fusion', branch_fusion, ('concat', 'sum'))
        weights = _complete_weights(loss_weights or {})
        if kwargs.get('input_transform') is not None:
            raise ValueError(
                f'input_transform={kwargs["input_transform"]!r} asks for several levels of the '
                'feature pyramid, but DPAHead takes one; leave it out and choose in_index.'
            )
        if convolutions == 'none':
            channels = in_channels
        super().__init__(in_channels=in_channels, channels=channels, **kwargs)
        self.loss_weights = {output: weight for output, weight in weights.items() if weight}
        self.branch_fusion = branch_fusion
        self.width = channels if convolutions == 'both' else in_channels
        branch = partial(
            AttentionBranch,
            in_channels=in_channels,
            channels=channels,
            width=self.width,
            convolutions=convolutions,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )
        spa = SpatialPoolAttention(
            self.width,
            key_sizes=key_sizes,
            value_sizes=value_sizes,
            qkv=qkv,
            query_channels=query_channels,
            pooling=pooling,
            scaled=scaled,
        )
        cpa = ChannelPoolAttention(
            self.width, similarity=similarity, maximum=maximum, qkv=channel_qkv
        )
        self.spa, self.cpa = (
            branch(
                attention=attention if name in attentions else nn.Identity(),
                num_outputs=self.out_channels if name in self.loss_weights else 0,
            )
            for name, attention in (('spa', spa), ('cpa', cpa))
        )
        if branch_fusion == 'concat':  # BaseDecodeHead's own classifier takes `channels` channels
            self.conv_seg = nn.Conv2d(2 * channels, self.out_channels, 1)

    @property
    @override
    def site_channels(self) -> dict[str, tuple[int, ...]]:
        sites: dict[str, tuple[int, ...]] = dict(input=(self.in_channels,))
        if self.spa.conv_in is not None:
            sites['attention_input'] = (self.channels,) * 2
        sites['attention'] = (self.width,) * 2
        if self.spa.conv_out is not None:
            sites['attention_output'] = (self.channels,) * 2
        return sites

    def steps(self, inputs: Sequence[Tensor]) -> Steps:
        """Run DPANet, offering its maps after each layer; see the base class.

        Yields:
            ``(site, feature)`` at ``input``, then for each branch at ``attention_input``,
            ``attention`` and ``attention_output``.

        Returns:
            The fused logits, ``(N, num_classes, H, W)``. In training mode, if branches have
            classifiers, the logits of all outputs by name, ``fused`` first.
        """
        x = yield 'input', inputs[self.in_index]

        features: dict[str, Tensor] = {}
        for name, branch in (('spa', self.spa), ('cpa', self.cpa)):
            feature = x
            if branch.conv_in is not None:
                feature = yield 'attention_input', branch.conv_in(feature)
            feature = yield 'attention', branch.attention(feature)
            if branch.conv_out is not None:
                feature = yield 'attention_output', branch.conv_out(feature)
            features[name] = feature

        if self.branch_fusion == 'concat':
            fused = torch.cat(list(features.values()), dim=1)
        else:
            fused = features['spa'] + features['cpa']
        logits: Any = self.cls_seg(fused)
        if self.training and len(self.loss_weights) > 1:
            logits = dict(fused=logits)
            for name, branch in (('spa', self.spa), ('cpa', self.cpa)):
                if branch.conv_seg is not None:
                    feature = features[name]
                    feature = feature if self.dropout is None else self.dropout(feature)
                    logits[name] = branch.conv_seg(feature)
        return logits

    @override
    def loss_by_feat(
        self, seg_logits: Tensor | Mapping[str, Tensor], batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        if not isinstance(seg_logits, Mapping):
            seg_logits = dict(fused=seg_logits)
        losses: dict[str, Tensor] = {}
        for output, logits in seg_logits.items():
            weight = self.loss_weights[output]
            values = {
                name: value * weight if 'loss' in name else value
                for name, value in super().loss_by_feat(logits, batch_data_samples).items()
            }
            losses.update(add_prefix(values, output) if len(self.loss_weights) > 1 else values)
        return losses

    @override
    def predict_by_feat(
        self, seg_logits: Tensor | Mapping[str, Tensor], batch_img_metas: list[dict[str, Any]]
    ) -> Tensor:
        if isinstance(seg_logits, Mapping):
            seg_logits = seg_logits['fused']
        return super().predict_by_feat(seg_logits, batch_img_metas)


def _complete_weights(given: Mapping[str, float]) -> dict[str, float]:
    """Weights of all outputs, 1 for those that are not given."""
    unknown = [output for output in given if output not in OUTPUTS]
    if unknown:
        raise ValueError(
            f'loss_weights names the unknown output {unknown[0]!r}; the outputs are {OUTPUTS}.'
        )
    weights = {output: float(given.get(output, 1)) for output in OUTPUTS}
    if not all(0 <= weight < float('inf') for weight in weights.values()) or not weights['fused']:
        raise ValueError(
            f'loss_weights={dict(given)} cannot train the head; give numbers from 0 on, and more '
            "than 0 for 'fused', the output that predicts."
        )
    return weights
