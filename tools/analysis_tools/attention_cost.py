"""Cost of DPANet's attentions and of what they replace, side by side in one process.

Prints a Markdown table for every map size: parameters, multiply-accumulate operations, time and the
peak of the memory taken beyond the map itself. Attentions: SPA and CPA, with the 1x1 convolutions
of figure 4 or without; the literal SPA, which projects the whole map and pools level by level;
mmcv's NonLocal2d, and the same by PyTorch's scaled_dot_product_attention; PAM and CAM of DANet;
APNB of ANN. What does not fit into the memory is left out and said so.

With --count ann it prints table 1 of the paper instead: its own count, beside the true one.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import Parser, at_least, program, size


def main(argv: Sequence[str] | None = None) -> None:
    """Measure or count, and print."""
    parser = Parser(__doc__)
    parser.add_argument(
        '--count',
        choices=['true', 'ann'],
        default='true',
        help="true: measure; ann: the count of table 1, which is that of ANN's authors; "
        'default: %(default)s',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=size,
        default=[(96, 96), (256, 128)],  # of table 1: an eighth of 768x768 and of 2048x1024
        metavar='HxW',
        help='maps; default: 96x96 256x128',
    )
    parser.add_argument(
        '--channels',
        type=at_least(8),  # some attentions work with an eighth of them
        help='channels of the map; default: 512, with --count ann 2048',
    )
    parser.add_argument(
        '--batch-size', type=at_least(1), default=1, help='maps at a time; default: 1'
    )
    parser.add_argument('--train', action='store_true', help='measure the training step as well')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='attentions to measure')
    parser.add_argument(
        '--memory', type=float, metavar='GIB', help='memory to stay within; default: what is free'
    )
    parser.share('--repeats', '--threads', '--device')
    args = vars(parser.parse_args(argv))

    from mmseg_coop.analysis.attention_cost import count_as_the_paper, measure_attentions

    count, channels = args.pop('count'), args.pop('channels')
    if count == 'ann':
        count_as_the_paper(args['sizes'], channels or 2048)
    else:
        measure_attentions(channels=channels or 512, **args)


if __name__ == '__main__':
    program(main)
