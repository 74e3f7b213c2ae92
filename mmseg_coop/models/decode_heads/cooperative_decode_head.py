"""What a decode head needs in order to cooperate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import accuracy
from mmseg.models.utils import resize
from mmseg.utils import SampleList
from torch import Tensor
from typing_extensions import override

from .._checks import check_fraction, check_losses, check_positive
from ..cooperation import Steps, run_in_step
from .levels import READS, Reads, check_levels


class CooperativeDecodeHead(BaseDecodeHead):
    """A decode head that offers its feature maps at sites, layer by layer.

    Subclasses write their forward pass once, as :meth:`steps`; alone they are ordinary heads of
    mmseg, and :class:`CoopHead` runs several in step.

    Args:
        in_channels: Channels of the backbone's output.
        channels: Channels of the layers.
        num_classes: Number of classes.
        in_index: Level of the backbone's output in the feature pyramid. Defaults to -1.
        dropout_ratio: Share of what the dropout drops. Defaults to 0.1.
        ignore_index: Label that is ignored. Defaults to 255.
        align_corners: Passed to every interpolation. Defaults to False.
        **kwargs: Further arguments of mmseg's ``BaseDecodeHead``. ``norm_cfg`` defaults to
            ``dict(type='BN')`` here.

    Raises:
        ValueError: A number is out of its range, or a loss does not fit the outputs.
    """

    #: The arguments for channels of the feature pyramid, which :class:`CrossCoopEncoderDecoder`
    #: fills in; each with that for the level, and the default of the latter.
    reads: ClassVar[Reads] = READS

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_classes: int,
        in_index: int = -1,
        dropout_ratio: float = 0.1,
        ignore_index: int = 255,
        align_corners: bool = False,
        **kwargs: Any,
    ) -> None:
        check_positive('in_channels', in_channels)
        check_positive('channels', channels)
        check_positive('num_classes', num_classes)
        check_fraction('dropout_ratio', dropout_ratio)
        if kwargs.get('loss_decode', True) in (None, [], ()):
            raise ValueError(f'loss_decode={kwargs["loss_decode"]!r} leaves nothing to train with.')
        kwargs.setdefault('norm_cfg', dict(type='BN'))
        super().__init__(
            in_channels=in_channels,
            channels=channels,
            num_classes=num_classes,
            in_index=in_index,
            dropout_ratio=dropout_ratio,
            ignore_index=ignore_index,
            align_corners=align_corners,
            **kwargs,
        )
        check_losses(self)

    @property
    @abstractmethod
    def site_channels(self) -> dict[str, tuple[int, ...]]:
        """Channels at every site, in the order in which :meth:`steps` yields there."""

    @property
    def input_channels(self) -> dict[int, int]:
        """Channels expected at each used index of the feature pyramid."""
        return {getattr(self, index): getattr(self, key) for key, (index, _) in self.reads.items()}

    @abstractmethod
    def steps(self, inputs: Sequence[Tensor]) -> Steps:
        """Run the head as a generator.

        Args:
            inputs: Feature pyramid, each ``(N, C_i, H_i, W_i)``.

        Yields:
            ``(site, feature)``; it is sent the feature map with which it goes on.

        Returns:
            The logits, ``(N, num_classes, H, W)``.
        """

    @override
    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        check_levels(self.input_channels, [level.shape[1] for level in inputs])
        return run_in_step(dict(head=self.steps(inputs)))['head']

    @override
    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        if self.out_channels > 1:
            return super().loss_by_feat(seg_logits, batch_data_samples)
        # The largest of a single logit is always class 0, so mmseg's acc_seg is that of class 0.
        labels = self._stack_batch_gt(batch_data_samples)
        seg_logits = resize(
            seg_logits, size=labels.shape[2:], mode='bilinear', align_corners=self.align_corners
        )
        losses = super().loss_by_feat(seg_logits, batch_data_samples)
        probability = seg_logits.detach().sigmoid()
        losses['acc_seg'] = accuracy(
            torch.cat([torch.full_like(probability, self.threshold), probability], dim=1),
            labels.squeeze(1),
            ignore_index=self.ignore_index,
        )
        return losses
