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

from collections.abc import Sequence

from mmseg_coop_cli import CONVERSION, Parser, at_least, program


def main(argv: Sequence[str] | None = None) -> None:
    """Convert."""
    parser = Parser(__doc__)
    parser.share(*CONVERSION)
    group = parser.add_argument_group('batch norm')
    group.add_argument('--restore-bn', metavar='IMAGE_DIR', help='training images')
    group.add_argument('--max-images', type=at_least(1), default=1000, help='default: %(default)s')
    for name, meaning in (('mean', 'subtracted'), ('std', 'divided by')):
        group.add_argument(
            f'--{name}',
            type=float,
            nargs=3,
            default=[127.5] * 3,
            metavar=('R', 'G', 'B'),
            help=f'{meaning}, of 0..255; default: 127.5 each',
        )
    args = parser.parse_args(argv)
    if min(args.std) <= 0:
        parser.error(f'--std must be positive, not {args.std}')

    from mmseg_coop.apis import foreign_weights
    from mmseg_coop.apis.convert import StateDict, convert_checkpoint

    paths = args.restore_bn and foreign_weights.find_images(args.restore_bn, args.max_images)

    def convert(state_dict: StateDict) -> StateDict:
        converted = foreign_weights.convert_torchvision_mobilenet_v2(state_dict)
        if not paths:
            return converted
        images = foreign_weights.read_images(paths, args.mean, args.std)
        return foreign_weights.restore_batch_norm(converted, images)

    convert_checkpoint(args.source, args.destination, convert, force=args.force)
    if paths:
        print(f'batch norm restored from {len(paths)} images of {args.restore_bn}')


if __name__ == '__main__':
    program(main)
