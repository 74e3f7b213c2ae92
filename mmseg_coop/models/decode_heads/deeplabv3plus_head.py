"""The decode head of DeepLabV3+, which offers the maps of every layer of ASPP and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmengine.dist import get_world_size
from mmengine.model import ModuleList
from mmseg.models.decode_heads.aspp_head import ASPPModule
from mmseg.models.decode_heads.sep_aspp_head import DepthwiseSeparableASPPModule
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from ...errors import InputError
from .._checks import check_all_positive, check_positive
from ..cooperation import Steps
from .cooperative_decode_head import CooperativeDecodeHead
from .join_conv import JoinConv2d
from .levels import READS


@MODELS.register_module()
class DeepLabV3PlusHead(CooperativeDecodeHead):
    """ASPP and decoder of one DeepLabV3+, as the paper draws them in figure 3.

    ASPP has five branches: 1x1, 3x3 at the three rates, image pooling. mmseg's own DeepLabV3+ head
    fixes separable convolutions and a 3x3 bottleneck, so it cannot stand for the paper's network.

    Args:
        in_channels: Channels of the backbone's output.
        channels: Channels of every ASPP branch, of the ASPP output and of the decoder. Defaults to
            256.
        in_index: Level of the backbone's output in the feature pyramid. Defaults to -1.
        dilations: Rates of the convolutional branches; (1, 12, 24, 36) suits output stride 8.
            Defaults to (1, 6, 12, 18).
        low_level_in_channels: Channels of the low-level feature. Defaults to 256; within
            :class:`CrossCoopEncoderDecoder`, to what is found.
        low_level_index: Its level in the feature pyramid. Defaults to 0.
        low_level_channels: Channels it is projected to. Defaults to 48.
        num_decoder_convs: 3x3 convolutions of the decoder. Defaults to 2.
        separable: Depthwise separable instead of dense 3x3 convolutions. Defaults to False.
        dropout_ratio: Dropout behind the ASPP output. Defaults to 0.1.
        **kwargs: Arguments of mmseg's ``BaseDecodeHead``, ``num_classes`` above all. ``norm_cfg``
            defaults to ``dict(type='BN')`` here.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> import torch
        >>> head = DeepLabV3PlusHead(
        ...     in_channels=32, low_level_in_channels=8, channels=16, num_classes=19
        ... ).eval()
        >>> head([torch.rand(1, 8, 16, 16), torch.rand(1, 32, 4, 4)]).shape
        torch.Size([1, 19, 16, 16])
    """

    reads: ClassVar = dict(READS, low_level_in_channels=('low_level_index', 0))

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int = 256,
        in_index: int = -1,
        dilations: Sequence[int] = (1, 6, 12, 18),
        low_level_in_channels: int = 256,
        low_level_index: int = 0,
        low_level_channels: int = 48,
        num_decoder_convs: int = 2,
        separable: bool = False,
        dropout_ratio: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            channels=channels,
            in_index=in_index,
            dropout_ratio=dropout_ratio,
            **kwargs,
        )
        check_all_positive('dilations', dilations, example='(1, 6, 12, 18)')
        check_positive('low_level_in_channels', low_level_in_channels)
        check_positive('low_level_channels', low_level_channels)
        check_positive('num_decoder_convs', num_decoder_convs)
        self.low_level_in_channels = low_level_in_channels
        self.low_level_index = low_level_index
        layer = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        aspp_class = DepthwiseSeparableASPPModule if separable else ASPPModule
        self.aspp = aspp_class(
            dilations=tuple(dilations), in_channels=in_channels, channels=channels, **layer
        )
        self.image_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), ConvModule(in_channels, channels, 1, **layer)
        )
        self.bottleneck = ConvModule((len(self.aspp) + 1) * channels, channels, 1, **layer)
        # BaseDecodeHead drops whole channels in front of the classifier; DeepLabV3+ drops single
        # elements behind the ASPP output.
        self.dropout = nn.Dropout(dropout_ratio) if dropout_ratio > 0 else nn.Identity()
        self.low_level = ConvModule(low_level_in_channels, low_level_channels, 1, **layer)
        conv_class = DepthwiseSeparableConvModule if separable else ConvModule
        conv_layer = dict(norm_cfg=self.norm_cfg, act_cfg=self.act_cfg) if separable else layer
        # A convolution of the user's own type is left as it is.
        self.joins = not separable and self.conv_cfg is None
        joining = {**conv_layer, 'padding': 1}
        if self.joins:
            joining['conv_cfg'] = dict(type=JoinConv2d, align_corners=self.align_corners)
        self.decoder = ModuleList(
            [conv_class(channels + low_level_channels, channels, 3, **joining)]
        )
        for _ in range(num_decoder_convs - 1):
            self.decoder.append(conv_class(channels, channels, 3, padding=1, **conv_layer))

    @property
    @override
    def site_channels(self) -> dict[str, tuple[int, ...]]:
        return dict(
            input=(self.in_channels,),
            aspp=(self.channels,) * (len(self.aspp) + 1),
            aspp_output=(self.channels,),
            low_level=(self.low_level.out_channels,),
            decoder=(self.channels,) * len(self.decoder),
        )

    def steps(self, inputs: Sequence[Tensor]) -> Steps:
        """Run DeepLabV3+, offering its maps after each layer; see the base class.

        Yields:
            ``(site, feature)`` at ``input`` (the head's input, Connection 1), ``aspp`` (every
            branch), ``aspp_output`` (Connection 2), ``low_level``, ``decoder`` (every convolution).

        Returns:
            The logits, ``(N, num_classes, H, W)`` at the stride of the low-level feature.
        """
        x = yield 'input', inputs[self.in_index]

        branches = []
        for branch in self.aspp:
            branches.append((yield 'aspp', branch(x)))
        # Exchanged before it is spread over the map: a constant map stays constant under every
        # fusion by 1x1 operations, at a fraction of the cost. Only the running variance of a
        # fusion's batch norm differs a little, N values making it unbiased in place of N*H*W.
        pooled = yield 'aspp', self._pool_image(x)
        branches.append(self._resize(pooled, x))
        x = self.dropout(self.bottleneck(torch.cat(branches, dim=1)))
        x = yield 'aspp_output', x

        low_level = yield 'low_level', self.low_level(inputs[self.low_level_index])
        maps: Any = (x, low_level)
        if not self.joins:
            maps = torch.cat([self._resize(x, low_level), low_level], dim=1)
        for conv in self.decoder:
            maps = yield 'decoder', conv(maps)
        return self.conv_seg(maps)

    def _resize(self, feature: Tensor, like: Tensor) -> Tensor:
        return resize(
            feature, size=like.shape[2:], mode='bilinear', align_corners=self.align_corners
        )

    def _pool_image(self, x: Tensor) -> Tensor:
        """The image pooling branch, ``(N, channels, 1, 1)``."""
        norm = self.image_pool[1].norm
        processes = get_world_size() if isinstance(norm, nn.SyncBatchNorm) else 1
        if self.training and isinstance(norm, _BatchNorm) and x.shape[0] * processes == 1:
            raise InputError(
                'the image pooling branch of ASPP cannot be trained with a batch of 1: its batch '
                'norm sees a single value per channel. Use train_dataloader.batch_size of 2 or '
                "more, norm_cfg=dict(type='SyncBN') on several GPUs, or a norm without batch "
                "statistics such as dict(type='GN', num_groups=32)."
            )
        return self.image_pool(x)
