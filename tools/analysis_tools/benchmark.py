"""Time and peak memory of models, side by side in one process, on synthetic images.

Prints a Markdown table of the forward pass and the training step (loss, backward, SGD) of every
config, and the ratio of the first to each of the others and to all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import Parser, at_least, program


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = Parser(__doc__)
    parser.share('config')
    parser.add_argument(
        '--vs', nargs='+', default=[], metavar='CONFIG', help='configs to compare it with'
    )
    parser.share('--size', default=(513, 513), help='size of the images; default: 513x513')
    parser.add_argument(
        '--batch-size', type=at_least(1), default=2, help='images at a time; default: 2'
    )
    parser.share('--repeats', '--threads', '--device')
    parser.add_argument('--channels-last', action='store_true', help='NHWC memory layout')
    parser.add_argument(
        '--amp', action='store_true', help='autocast: float16 on CUDA, bfloat16 on the CPU'
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile the models')
    args = parser.parse_args(argv)

    from mmseg_coop.analysis.benchmark import benchmark

    benchmark(**vars(args))


if __name__ == '__main__':
    program(main)
