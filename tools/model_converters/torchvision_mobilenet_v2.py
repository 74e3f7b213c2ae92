"""Convert MobileNetV2 from torchvision's names to those of MMSegmentation's MobileNetV2 backbone.

The last 1x1 convolution and the classifier are left out. Half precision becomes float32.

Some files, such as those made from TensorFlow Lite, have batch norm folded into the convolutions:
the batch norm layers are identities with a bias. In training, batch statistics would then destroy
the features. ``--restore-bn IMAGE_DIR`` undoes it: training images are run through the network,
and each batch norm receives the mean and variance of its input as running statistics, with weight
and bias such that the network in eval mode computes what it did before. Images are read as RGB
and normalised as (x - MEAN) / STD, which has to be what the weights expect and what the network
is trained with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import mmcv
import torch
from mmseg.models.backbones import MobileNetV2
from torch import Tensor, nn

from mmseg_coop.engine.checkpoint_io import (
    StateDict,
    check_names_and_shapes,
    fail,
    make_parser,
    run,
)

BLOCKS_PER_LAYER = (1, 2, 3, 4, 3, 3, 1)
BLOCKS = [(layer, i) for layer, blocks in enumerate(BLOCKS_PER_LAYER, 1) for i in range(blocks)]
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')


def rename(name: str) -> str | None:
    """Return MMSegmentation's name, None for what its backbone has no use for."""
    if name.startswith((f'features.{len(BLOCKS) + 1}.', 'classifier.')):
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
        if 1 <= block <= len(BLOCKS) and part in (0, 1):
            layer, index = BLOCKS[block - 1]
            return f'layer{layer}.{index}.conv.{unit}.{("conv", "bn")[part]}.{match[4]}'
    raise ValueError(f"{name!r} is no name of torchvision's MobileNetV2")


def convert(state_dict: StateDict) -> dict[str, Tensor]:
    """Rename every tensor that the backbone has, and make it float32."""
    converted = {
        new: value.float() if value.is_floating_point() else value
        for name, value in state_dict.items()
        if (new := rename(name))
    }
    check_names_and_shapes(converted, MobileNetV2().state_dict())
    return converted


class InputMoments:
    """Mean and variance of each channel of what a layer receives, over all images and pixels."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self.count = 0
        self.total = torch.zeros(layer.num_features, dtype=torch.float64)
        self.total_squares = torch.zeros(layer.num_features, dtype=torch.float64)
        layer.register_forward_pre_hook(self.add)

    def add(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        """Add one input ``(N, C, H, W)``; a forward pre-hook."""
        (x,) = inputs
        x = x.double()
        self.count += x.numel() // x.shape[1]
        self.total += x.sum((0, 2, 3))
        self.total_squares += x.square().sum((0, 2, 3))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance, each ``(C,)`` in float64."""
        mean = self.total / self.count
        return mean, (self.total_squares / self.count - mean.square()).clamp(min=0)


@torch.no_grad()
def restore_batch_norm(state_dict: StateDict, images: Iterable[Tensor]) -> dict[str, Tensor]:
    """Give every batch norm the statistics of its input, without changing the network.

    Args:
        state_dict: Weights of MMSegmentation's MobileNetV2.
        images: Normalised batches ``(N, 3, H, W)``.

    Returns:
        Weights with which the network in eval mode computes the same.
    """
    model = MobileNetV2()
    model.load_state_dict(state_dict)
    model.eval()
    moments = {m: InputMoments(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    for image in images:
        model(image)
    # What the layers compute in eval mode is unchanged, so all could be measured in one run.
    for layer, measured in moments.items():
        mean, var = measured.compute()
        running_mean, running_var = (
            layer.get_buffer('running_mean'),
            layer.get_buffer('running_var'),
        )
        scale = layer.weight.double() / (running_var.double() + layer.eps).sqrt()
        bias = layer.bias.double() + scale * (mean - running_mean.double())
        layer.weight.copy_(scale * (var + layer.eps).sqrt())
        layer.bias.copy_(bias)
        running_mean.copy_(mean)
        running_var.copy_(var)
    return model.state_dict()


def read_images(paths: list[Path], mean: list[float], std: list[float]) -> Iterator[Tensor]:
    """Yield each image as a normalised batch of one, ``(1, 3, H, W)``."""
    shape = (1, 3, 1, 1)
    for path in paths:
        image = mmcv.imread(path)
        if image is None:
            fail(f'--restore-bn: {path} is no readable image; remove or replace it')
        x = torch.from_numpy(mmcv.bgr2rgb(image)).permute(2, 0, 1)[None].float()
        yield (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def find_images(folder: Path, limit: int) -> list[Path]:
    """Return images anywhere below a folder, evenly picked if there are more than the limit."""
    paths = sorted(p for p in folder.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        fail(f'--restore-bn: no image ({", ".join(IMAGE_SUFFIXES)}) below {folder}')
    return paths[:: -(-len(paths) // limit)]


def main() -> None:
    """Convert the file named on the command line."""
    parser = make_parser(__doc__)
    group = parser.add_argument_group('batch norm')
    group.add_argument('--restore-bn', metavar='IMAGE_DIR', type=Path, help='training images')
    group.add_argument('--max-images', type=int, default=1000, help='default: %(default)s')
    for name, meaning in (('mean', 'subtracted'), ('std', 'divided by')):
        group.add_argument(
            f'--{name}',
            type=float,
            nargs=3,
            default=[127.5] * 3,
            metavar=('R', 'G', 'B'),
            help=f'{meaning}, of 0..255 (default: 127.5 each)',
        )
    args = parser.parse_args()
    if args.restore_bn is None:
        run(args, convert)
        return
    if args.max_images < 1:
        fail(f'--max-images must be at least 1, got {args.max_images}')
    if min(args.std) <= 0:
        fail(f'--std must be positive, got {args.std}')
    paths = find_images(args.restore_bn, args.max_images)
    images = read_images(paths, args.mean, args.std)
    run(args, lambda state_dict: restore_batch_norm(convert(state_dict), images))
    print(f'batch norm restored from {len(paths)} images of {args.restore_bn}')


if __name__ == '__main__':
    main()
