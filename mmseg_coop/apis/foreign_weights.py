"""Weights of other projects under the names of mmseg's backbones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmseg.models.backbones import MobileNetV2, TIMMBackbone
from torch import Tensor, nn

from ..errors import CheckpointError, DataError
from .convert import StateDict

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')


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
    names = dict(_conv_stem='conv_stem', _bn0='bn1')
    project = dict(_depthwise_conv='conv_dw', _bn1='bn1', _project_conv='conv_pw', _bn2='bn2')
    expand = dict(_expand_conv='conv_pw', _bn0='bn1', _depthwise_conv='conv_dw', _bn1='bn2')
    expand.update(_project_conv='conv_pwl', _bn2='bn3')
    for number, block in enumerate(_number_blocks((1, 2, 2, 3, 3, 4, 1))):
        for foreign, own in (expand if number else project).items():
            names[f'_blocks.{number}.{foreign}'] = f'blocks.{block}.{own}'
    names = {foreign: f'timm_model.{own}' for foreign, own in names.items()}
    backbone = TIMMBackbone('efficientnet_lite0', features_only=True, pretrained=False)
    left_out = ('_conv_head.', '_bn1.', '_fc.')
    origin = 'EfficientNet-Lite0 in EfficientNet-PyTorch'
    return _rename(state_dict, names, left_out, origin, backbone)


def convert_torchvision_mobilenet_v2(state_dict: StateDict) -> StateDict:
    """Convert MobileNetV2 from torchvision's names to those of mmseg's backbone.

    Args:
        state_dict: State dict of torchvision's model.

    Returns:
        State dict of ``MobileNetV2``, without the last 1x1 convolution and the classifier.

    Raises:
        CheckpointError: It is the state dict of another network.
    """
    names = {'features.0.0': 'conv1.conv', 'features.0.1': 'conv1.bn'}
    for number, block in enumerate(_number_blocks((1, 2, 3, 4, 3, 3, 1), first=1), start=1):
        # The first block does not expand. The projection stands beside the units before it.
        units = ['0.0', '0.1', '1', '2'] if number == 1 else ['0.0', '0.1', '1.0', '1.1', '2', '3']
        for place, unit in enumerate(units):
            own = f'conv.{place // 2}.{("conv", "bn")[place % 2]}'
            names[f'features.{number}.conv.{unit}'] = f'layer{block}.{own}'
    left_out, origin = ('features.18.', 'classifier.'), "torchvision's MobileNetV2"
    return _rename(state_dict, names, left_out, origin, MobileNetV2())


def _number_blocks(counts: Sequence[int], first: int = 0) -> list[str]:
    """``'{stage}.{index}'`` of all blocks, by the number of blocks in each stage."""
    return [f'{stage}.{i}' for stage, count in enumerate(counts, first) for i in range(count)]


def _rename(
    state_dict: StateDict,
    names: Mapping[str, str],
    left_out: tuple[str, ...],
    origin: str,
    model: nn.Module,
) -> StateDict:
    """Give tensors the names of a model's layers; it has to take them all and lack none."""
    renamed = {}
    for name, value in state_dict.items():
        layer, _, tensor = name.rpartition('.')
        if layer in names:
            renamed[f'{names[layer]}.{tensor}'] = value
        elif not name.startswith(left_out):
            raise CheckpointError(f'{name!r} is no name of {origin}')
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:  # what does not fit, each in a line or more
        text = ' '.join(str(error).split())
        raise CheckpointError(text if len(text) < 500 else f'{text[:500]} …') from error
    return renamed


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
    """Find images anywhere below a folder, evenly picked if there are more than the limit."""
    paths = sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f'no image ({", ".join(IMAGE_SUFFIXES)}) below {str(folder)!r}.')
    return paths[:: -(-len(paths) // limit)]


def read_images(
    paths: Iterable[Path], mean: Sequence[float], std: Sequence[float]
) -> Iterator[Tensor]:
    """Read each image as a normalised batch of one, RGB, ``(1, 3, H, W)``."""
    for path in paths:
        image = mmcv.imread(path)
        if image is None:
            raise DataError(f'{path} is no readable image; remove or replace it', path=str(path))
        x = torch.from_numpy(mmcv.bgr2rgb(image)).permute(2, 0, 1)[None].float()
        yield (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
