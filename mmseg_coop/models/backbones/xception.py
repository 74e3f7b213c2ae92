"""Aligned Xception, the backbone of DeepLabV3+, in depths 41, 65 and 71."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from ...errors import CheckpointError, first_few
from .._checks import check_all_positive, check_choice, check_positive

_EPS = 1e-3
"""Batch normalisation's epsilon in the released TensorFlow weights."""
_NORM_CFG: dict[str, Any] = dict(type='BN', eps=_EPS, requires_grad=True)

_STEM_CHANNELS = (32, 64)
_ENTRY_BLOCKS: dict[int, tuple[tuple[int, int], ...]] = {
    41: ((128, 2), (256, 2), (728, 2)),
    65: ((128, 2), (256, 2), (728, 2)),
    71: ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
}
"""Per depth: channels and nominal stride of each block of the entry flow."""
_MIDDLE_BLOCKS = {41: 8, 65: 16, 71: 16}
_EXIT_RESIDUAL = (728, 1024, 1024)
_EXIT_PLAIN = (1536, 1536, 2048)


class _Block(NamedTuple):
    """Plan of one residual block."""

    channels: tuple[int, int, int]
    stride: int


def _plan(depth: int) -> list[_Block]:
    """Residual blocks of the network at its nominal strides (output stride 32)."""
    entry = [_Block((channels,) * 3, stride) for channels, stride in _ENTRY_BLOCKS[depth]]
    middle = [_Block((entry[-1].channels[-1],) * 3, 1)] * _MIDDLE_BLOCKS[depth]
    return [*entry, *middle, _Block(_EXIT_RESIDUAL, 2)]


class XceptionBlock(nn.Module):
    """Three separable convolutions, each after a ReLU, around a shortcut.

    Batch normalisation follows both halves of every separable convolution; no activation stands
    between them. The last one carries the stride, as does the shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels after each separable convolution.
        stride: Stride of the last separable convolution.
        dilation: Dilation of all three depthwise convolutions.
        project: Whether the shortcut is a 1x1 convolution rather than the identity.
        norm_cfg: Configuration of the normalisation layers.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: tuple[int, int, int],
        stride: int,
        dilation: int,
        project: bool,
        norm_cfg: dict[str, Any],
    ) -> None:
        super().__init__()
        # The input also feeds the shortcut, so the first ReLU must leave it as it is.
        self.relu = nn.ReLU()
        self.relu_inplace = nn.ReLU(inplace=True)
        conv_cfg = dict(
            kernel_size=3, padding=dilation, dilation=dilation, norm_cfg=norm_cfg, act_cfg=None
        )
        c1, c2, c3 = out_channels
        self.conv1 = DepthwiseSeparableConvModule(in_channels, c1, **conv_cfg)
        self.conv2 = DepthwiseSeparableConvModule(c1, c2, **conv_cfg)
        self.conv3 = DepthwiseSeparableConvModule(c2, c3, stride=stride, **conv_cfg)
        self.shortcut = (
            ConvModule(in_channels, c3, 1, stride=stride, norm_cfg=norm_cfg, act_cfg=None)
            if project
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the block.

        Args:
            x: Features ``(N, in_channels, H, W)``.

        Returns:
            The block's output ``(N, out_channels[2], H / stride, W / stride)``, and its last
            features before the stride: ``(N, out_channels[1], H, W)``, after their ReLU.
        """
        out = self.conv1(self.relu(x))
        unstrided = self.relu_inplace(self.conv2(self.relu_inplace(out)))
        return self.conv3(unstrided) + self.shortcut(x), unstrided


def _make_blocks(
    depth: int, output_stride: int, norm_cfg: dict[str, Any]
) -> tuple[list[XceptionBlock], list[tuple[int, int]], int]:
    """The residual blocks, channels and stride of each level, and the last convolutions' rate."""
    blocks, levels = [], []
    channels, stride, dilation = _STEM_CHANNELS[-1], 2, 1
    for planned in _plan(depth):
        halves = planned.stride > 1
        dilate = halves and stride == output_stride
        blocks.append(
            XceptionBlock(
                in_channels=channels,
                out_channels=planned.channels,
                stride=1 if dilate else planned.stride,
                dilation=dilation,
                # By the plan's stride, not the one in use: the parameters stay the same.
                project=halves or channels != planned.channels[-1],
                norm_cfg=norm_cfg,
            )
        )
        if halves:
            levels.append((planned.channels[1], stride))
            # Only the blocks that follow see the new stride, or the dilation in its place.
            if dilate:
                dilation *= planned.stride
            else:
                stride *= planned.stride
        channels = planned.channels[-1]
    return blocks, [*levels, (_EXIT_PLAIN[-1], stride)], dilation


@MODELS.register_module()
class Xception(BaseModule):
    """Aligned Xception.

    The network of `Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation <https://arxiv.org/abs/1802.02611>`_ (section 3.2, figure 4), in the form of its
    authors' TensorFlow release: a stem of two convolutions, an entry flow, a middle flow of 728
    channels, and an exit flow. Weights of timm's ``xception41``, ``xception65`` and ``xception71``
    fit after :func:`convert_timm_state_dict`; they expect RGB images scaled to [-1, 1].

    The outputs are the last features before each halving of the resolution (inside the block
    that halves it, after the ReLU of its last separable convolution), and the network's end:

    ===== ======== ================== ================== =================
    level channels stride (output 32) stride (output 16) stride (output 8)
    ===== ======== ================== ================== =================
    0     128      2                  2                  2
    1     256      4                  4                  4
    2     728      8                  8                  8
    3     1024     16                 16                 8
    4     2048     32                 16                 8
    ===== ======== ================== ================== =================

    Level 1 is the low-level feature of DeepLabV3+'s decoder, level 4 the input of its ASPP.

    A smaller output stride replaces strides by dilation from then on: at 16 the second exit block
    has rate 2; at 8 the middle flow and the first exit block have rate 2, the second rate 4. The
    parameters are the same at every output stride.

    Args:
        depth: 41, 65 or 71. Defaults to 65.
        in_channels: Channels of the image. Defaults to 3.
        output_stride: Stride of the last level: 8, 16 or 32. Defaults to 16.
        out_indices: Levels to return, in ascending order. Defaults to all five.
        multi_grid: Factors on the dilation of the three convolutions of the second exit block.
            Defaults to (1, 1, 1).
        frozen_stages: Parts kept as they are, parameters and batch statistics: -1 none, 0 the
            stem, 1 also the entry flow, 2 also the middle flow, 3 also the exit flow, that is
            everything. Defaults to -1.
        norm_eval: Whether batch normalisation keeps its running statistics while training.
            Defaults to False.
        with_cp: Whether to recompute each block in the backward pass, which saves memory and
            costs time. Gradients are the same, but running statistics are then updated twice a
            step, as in every backbone of MMSegmentation with this option. Defaults to False.
        norm_cfg: Configuration of the normalisation layers. Without ``eps`` that of the released
            weights, 1e-3, is taken. Defaults to ``dict(type='BN', eps=1e-3, requires_grad=True)``.
        init_cfg: Initialisation, for instance
            ``dict(type='Pretrained', checkpoint='timm://xception65.tf_in1k')``. By default
            convolutions are drawn from a normal distribution (Kaiming, fan-in) and normalisation
            starts as the identity.

    Attributes:
        out_channels (tuple[int, ...]): Channels of each returned level.
        strides (tuple[int, ...]): Stride of each returned level with respect to the image.

    Raises:
        ValueError: If an argument is outside what is listed above.

    Example:
        >>> import torch
        >>> model = Xception(depth=41, output_stride=16, out_indices=(1, 4)).eval()
        >>> model.out_channels, model.strides
        ((256, 2048), (4, 16))
        >>> with torch.no_grad():
        ...     low_level, final = model(torch.rand(1, 3, 64, 64))
        >>> low_level.shape, final.shape
        (torch.Size([1, 256, 16, 16]), torch.Size([1, 2048, 4, 4]))
    """

    def __init__(
        self,
        *,
        depth: int = 65,
        in_channels: int = 3,
        output_stride: int = 16,
        out_indices: Sequence[int] = (0, 1, 2, 3, 4),
        multi_grid: Sequence[int] = (1, 1, 1),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        norm_cfg: dict[str, Any] = _NORM_CFG,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        if init_cfg is None:
            # Fan-in, since fan-out counts all groups of a depthwise convolution together and would
            # draw its weights so small that eps takes a visible part of the variance.
            init_cfg = [
                dict(type='Kaiming', layer='Conv2d', mode='fan_in'),
                dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1),
            ]
        super().__init__(init_cfg)
        check_positive('in_channels', in_channels)
        check_choice('depth', depth, _ENTRY_BLOCKS)
        check_choice('output_stride', output_stride, (8, 16, 32))
        check_choice('frozen_stages', frozen_stages, range(-1, 4))
        check_all_positive('multi_grid', multi_grid, example='(1, 2, 4)')
        if len(multi_grid) != len(_EXIT_PLAIN):
            raise ValueError(
                f'multi_grid={multi_grid!r} has to hold three numbers, one for each convolution of '
                'the second exit block.'
            )
        self.out_indices = tuple(out_indices)
        if (
            not self.out_indices
            or not set(self.out_indices) <= set(range(5))
            or list(self.out_indices) != sorted(set(self.out_indices))
        ):
            raise ValueError(
                f'out_indices={out_indices!r} have to be levels from 0 to 4, at least one, each '
                'once and in ascending order.'
            )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        norm_cfg = {'eps': _EPS, **norm_cfg}

        c1, c2 = _STEM_CHANNELS
        self.stem = nn.Sequential(
            ConvModule(in_channels, c1, 3, stride=2, padding=1, norm_cfg=norm_cfg),
            ConvModule(c1, c2, 3, padding=1, norm_cfg=norm_cfg),
        )

        blocks, levels, dilation = _make_blocks(depth, output_stride, norm_cfg)
        self._downsampling = [block.stride > 1 for block in _plan(depth)]

        exit_convs = []
        channels = _EXIT_RESIDUAL[-1]
        for factor, out_channels in zip(multi_grid, _EXIT_PLAIN, strict=True):
            rate = dilation * factor
            exit_convs.append(
                DepthwiseSeparableConvModule(
                    channels, out_channels, 3, padding=rate, dilation=rate, norm_cfg=norm_cfg
                )
            )
            channels = out_channels

        num_entry = len(_ENTRY_BLOCKS[depth])
        self.entry_flow = nn.Sequential(*blocks[:num_entry])
        self.middle_flow = nn.Sequential(*blocks[num_entry:-1])
        self.exit_flow = nn.Sequential(blocks[-1], nn.Sequential(*exit_convs))

        self.out_channels = tuple(levels[i][0] for i in self.out_indices)
        self.strides = tuple(levels[i][1] for i in self.out_indices)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the chosen levels.

        Args:
            x: Images ``(N, in_channels, H, W)``.

        Returns:
            One feature map ``(N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i]))``
            for each of ``out_indices``.
        """
        levels = []
        x = self.stem(x)
        for block, downsampling in zip(self._residual_blocks(), self._downsampling, strict=True):
            x, unstrided = self._run(block, x)
            if downsampling:
                levels.append(unstrided)
        levels.append(self._run(self.exit_flow[1], x))
        return tuple(levels[i] for i in self.out_indices)

    @override
    def train(self, mode: bool = True) -> Xception:
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _residual_blocks(self) -> Iterator[nn.Module]:
        yield from self.entry_flow
        yield from self.middle_flow
        yield self.exit_flow[0]

    def _run(self, module: nn.Module, x: Tensor) -> Any:
        if self.with_cp and x.requires_grad:
            return checkpoint(module, x, use_reentrant=False)
        return module(x)

    def _freeze_stages(self) -> None:
        stages = (self.stem, self.entry_flow, self.middle_flow, self.exit_flow)
        for stage in stages[: self.frozen_stages + 1]:
            stage.eval()
            stage.requires_grad_(False)


_TIMM_CLASSIFIER = ('head.fc.weight', 'head.fc.bias')


def _timm_name(name: str, num_entry: int, num_middle: int) -> str:
    """Name in timm's ``XceptionAligned`` of one of our parameters or buffers."""
    flow, _, rest = name.partition('.')
    if flow == 'stem':
        return name
    index, _, rest = rest.partition('.')
    first = dict(entry_flow=0, middle_flow=num_entry, exit_flow=num_entry + num_middle)[flow]
    # The second exit block is a plain sequence, counted from 0; timm numbers convolutions from 1.
    rest = re.sub(r'^(\d)\.', lambda match: f'conv{int(match[1]) + 1}.', rest)
    rest = re.sub(r'^conv\d\.', r'stack.\g<0>', rest)
    rest = re.sub(r'(d|p)(?:epth|oint)wise_conv\.(conv|bn)', r'\2_\1w', rest)
    return f'blocks.{first + int(index)}.{rest}'


def convert_timm_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of timm's ``xception41``, ``xception65`` or ``xception71`` to our names.

    The classifier is dropped. The weights are converted for every ``output_stride`` alike.

    Args:
        state_dict: State dict of the timm model, with or without its classifier.

    Returns:
        State dict of :class:`Xception` at the same depth, holding the same tensors.

    Raises:
        CheckpointError: If keys are missing or unexpected, or the number of blocks is that of no
            depth.
    """
    indices = {int(match[1]) for key in state_dict if (match := re.match(r'blocks\.(\d+)\.', key))}
    depths = {len(_plan(depth)) + 1: depth for depth in _ENTRY_BLOCKS}
    num_blocks = max(indices, default=-1) + 1
    if num_blocks not in depths:
        raise CheckpointError(
            f"expected the state dict of timm's xception41, xception65 or xception71, with "
            f'{" or ".join(map(str, depths))} blocks (keys "blocks.N"), got {num_blocks} blocks; '
            f'the first keys are {list(state_dict)[:3]}'
        )
    depth = depths[num_blocks]
    with torch.device('meta'):  # only the names are needed
        names = Xception(depth=depth).state_dict()
    sizes = len(_ENTRY_BLOCKS[depth]), _MIDDLE_BLOCKS[depth]
    timm_names = {_timm_name(name, *sizes): name for name in names}

    problems = []
    for problem, keys in (
        ('missing', [key for key in timm_names if key not in state_dict]),
        ('unexpected', [k for k in state_dict if k not in (*timm_names, *_TIMM_CLASSIFIER)]),
    ):
        if keys:
            problems.append(f'{problem} keys: {first_few(keys, 10)}')
    if problems:
        raise CheckpointError(
            f"not the state dict of timm's xception{depth}: {'; '.join(problems)}"
        )
    return {name: state_dict[timm_name] for timm_name, name in timm_names.items()}
