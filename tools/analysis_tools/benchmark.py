"""Time and peak memory of models, side by side in one process, on synthetic images.

Prints a Markdown table of the forward pass and the training step (loss, backward, SGD) of every
config, and the ratio of the first to each of the others and to all of them together.

What makes a model fast is for the first config only, which is then measured without it, too: the
others run as they are, in float32. Two configs after --vs are thus two models one after the other.

With --growth FILE it draws, for the networks of the config, how time and memory grow with networks,
pixels and classes, beside the straight line through the points.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import Parser, at_least, ending, program


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = Parser(__doc__)
    parser.share('config')
    parser.add_argument(
        '--vs', nargs='+', default=[], metavar='CONFIG', help='configs to compare it with'
    )
    parser.add_argument(
        '--part', metavar='NAME', help='measure a part of the models alone, such as backbone'
    )
    parser.add_argument(
        '--modes',
        nargs='+',
        choices=['forward', 'train'],
        default=['forward', 'train'],
        help='what to measure; default: both',
    )
    parser.share('--size', default=(513, 513), help='size of the images; default: 513x513')
    parser.add_argument(
        '--batch-size', type=at_least(1), default=2, help='images at a time; default: 2'
    )
    parser.share('--repeats', '--threads', '--device', '--optimize', '--dtype')
    parser.share('--amp', '--channels-last', '--compile')
    parser.add_argument(
        '--profile', action='store_true', help='also print the five most expensive operators'
    )
    parser.add_argument(
        '--growth',
        type=ending('.png', '.svg', '.pdf'),
        metavar='FILE',
        help='draw how time and memory grow with networks, pixels and classes instead',
    )
    parser.share('--force')
    args = vars(parser.parse_args(argv))
    growth, force = args.pop('growth'), args.pop('force')
    if growth:
        from mmseg_coop.analysis.growth import draw_growth

        shared = ('config', 'size', 'batch_size', 'repeats', 'threads', 'device')
        draw_growth(out=growth, force=force, **{name: args[name] for name in shared})
        return

    from mmseg_coop.analysis.benchmark import benchmark

    benchmark(**args)


if __name__ == '__main__':
    program(main)
