"""Weights of other projects under the names of mmseg's backbones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmseg.models.backbones import MobileNetV2, TIMMBackbone
from torch import Tensor, nn

from ..errors import CheckpointError, DataError

StateDict = Mapping[str, Tensor]

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')


def _number_blocks(counts: Sequence[int], first: int = 0) -> list[str]:
    """``'{stage}.{index}'`` of all blocks, by the number of blocks in each stage."""
    return [f'{stage}.{i}' for stage, count in enumerate(counts, first) for i in range(count)]


def _check_fit(model: nn.Module, state_dict: StateDict) -> StateDict:
    """Refuse a state dict in which a tensor is missing, unexpected or of another shape."""
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:  # what does not fit, each in a line or more
        text = ' '.join(str(error).split())
        raise CheckpointError(text if len(text) < 500 else f'{text[:500]} …') from error
    return state_dict


LITE0_BLOCKS = _number_blocks((1, 2, 2, 3, 3, 4, 1))
LITE0_FIRST_BLOCK = dict(_depthwise_conv='conv_dw', _bn1='bn1', _project_conv='conv_pw', _bn2='bn2')
LITE0_BLOCK = dict(
    _expand_conv='conv_pw',
    _bn0='bn1',
    _depthwise_conv='conv_dw',
    _bn1='bn2',
    _project_conv='conv_pwl',
    _bn2='bn3',
)
LITE0_STEM = dict(_conv_stem='conv_stem', _bn0='bn1')


def _lite0_name(name: str) -> str | None:
    """Name under TIMMBackbone, None for what it has no use for."""
    if match := re.fullmatch(r'_blocks\.(\d+)\.(\w+)\.(\w+)', name):
        block, layer, tensor = int(match[1]), match[2], match[3]
        layers = LITE0_BLOCK if block else LITE0_FIRST_BLOCK
        if block < len(LITE0_BLOCKS) and layer in layers:
            return f'timm_model.blocks.{LITE0_BLOCKS[block]}.{layers[layer]}.{tensor}'
    layer, _, tensor = name.partition('.')
    if layer in ('_conv_head', '_bn1', '_fc'):
        return None
    if layer in LITE0_STEM:
        return f'timm_model.{LITE0_STEM[layer]}.{tensor}'
    raise CheckpointError(f'{name!r} is no name of EfficientNet-Lite0 in EfficientNet-PyTorch')


def convert_efficientnet_lite0(state_dict: StateDict) -> StateDict:
    """Convert EfficientNet-Lite0 from EfficientNet-PyTorch's names to those of TIMMBackbone.

    Args:
        state_dict: State dict of EfficientNet-PyTorch's model.

    Returns:
        State dict of ``TIMMBackbone('efficientnet_lite0')``, without the last 1x1 convolution and
        the classifier.

    Raises:
        CheckpointError: It is the state dict of another network.
    """
    renamed = {new: value for name, value in state_dict.items() if (new := _lite0_name(name))}
    backbone = TIMMBackbone('efficientnet_lite0', features_only=True, pretrained=False)
    return _check_fit(backbone, renamed)


MOBILENET_BLOCKS = _number_blocks((1, 2, 3, 4, 3, 3, 1), first=1)


def _mobilenet_name(name: str) -> str | None:
    """Name under mmseg's MobileNetV2, None for what it has no use for."""
    if name.startswith((f'features.{len(MOBILENET_BLOCKS) + 1}.', 'classifier.')):
        return None
    if match := re.fullmatch(r'features\.0\.([01])\.(\w+)', name):
        return f'conv1.{("conv", "bn")[int(match[1])]}.{match[2]}'
    if match := re.fullmatch(r'features\.(\d+)\.conv\.(?:(\d)\.)?(\d)\.(\w+)', name):
        block, unit, part = int(match[1]), match[2], int(match[3])
        if unit is None:
            # The projection and its batch norm stand beside the units before them, of which the
            # first block has one (no expansion), every other two.
            unit = 1 if block == 1 else 2
            part -= unit
        if 1 <= block <= len(MOBILENET_BLOCKS) and part in (0, 1):
            layer = f'layer{MOBILENET_BLOCKS[block - 1]}'
            return f'{layer}.conv.{unit}.{("conv", "bn")[part]}.{match[4]}'
    raise CheckpointError(f"{name!r} is no name of torchvision's MobileNetV2")


def convert_torchvision_mobilenet_v2(state_dict: StateDict) -> StateDict:
    """Convert MobileNetV2 from torchvision's names to those of mmseg's backbone, in float32.

    Args:
        state_dict: State dict of torchvision's model.

    Returns:
        State dict of ``MobileNetV2``, without the last 1x1 convolution and the classifier.

    Raises:
        CheckpointError: It is the state dict of another network.
    """
    renamed = {
        new: value.float() if value.is_floating_point() else value
        for name, value in state_dict.items()
        if (new := _mobilenet_name(name))
    }
    return _check_fit(MobileNetV2(), renamed)


@torch.no_grad()
def restore_batch_norm(state_dict: StateDict, images: Iterable[Tensor]) -> StateDict:
    """Give every batch norm the statistics of its input, without changing the network.

    Args:
        state_dict: Weights of mmseg's MobileNetV2.
        images: Normalised batches ``(N, 3, H, W)``.

    Returns:
        Weights with which the network in eval mode computes the same.
    """
    model = MobileNetV2()
    model.load_state_dict(state_dict)
    model.eval()
    sums: dict[nn.Module, list[Any]] = {}  # of the input's 1, x and x², over images and pixels

    def add(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].double()
        sums[layer][0] += x.numel() // x.shape[1]
        sums[layer][1] += x.sum((0, 2, 3))
        sums[layer][2] += x.square().sum((0, 2, 3))

    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            sums[layer] = [0, 0, 0]
            layer.register_forward_pre_hook(add)
    for image in images:
        model(image)
    # What the layers compute in eval mode is unchanged, so all could be measured in one run.
    for layer, (count, total, squares) in sums.items():
        mean = total / count
        var = (squares / count - mean.square()).clamp(min=0)
        old = {name: value.double() for name, value in layer.state_dict().items()}
        scale = old['weight'] / (old['running_var'] + layer.eps).sqrt()
        new = dict(
            weight=scale * (var + layer.eps).sqrt(),
            bias=old['bias'] + scale * (mean - old['running_mean']),
            running_mean=mean,
            running_var=var,
        )
        layer.load_state_dict(new, strict=False)
    return model.state_dict()


def find_images(folder: str | Path, limit: int) -> list[Path]:
    """Find images anywhere below a folder, evenly picked if there are more than the limit.

    Raises:
        FileNotFoundError: There is none.
    """
    paths = sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f'no image ({", ".join(IMAGE_SUFFIXES)}) below {str(folder)!r}.')
    return paths[:: -(-len(paths) // limit)]


def read_images(
    paths: Iterable[Path], mean: Sequence[float], std: Sequence[float]
) -> Iterator[Tensor]:
    """Read each image as a normalised batch of one, RGB, ``(1, 3, H, W)``.

    Raises:
        DataError: A file is no image.
    """
    for path in paths:
        image = mmcv.imread(path)
        if image is None:
            raise DataError(f'{path} is no readable image; remove or replace it', path=str(path))
        x = torch.from_numpy(mmcv.bgr2rgb(image)).permute(2, 0, 1)[None].float()
        yield (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
