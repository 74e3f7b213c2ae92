"""Parameters and multiply-accumulate operations of a model, by part, at a stated input size.

Counts the matrix products and convolutions of one forward pass on one image, as torch's own counter
does (a multiply-accumulate is two of its operations). Nothing is computed: the model runs on the
meta device.

Parts are the backbone, of every network its own, the layers of the head and the cooperative paths.
ASPP ends with its output, the convolution behind its branches; the decoder with the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import Parser, program


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = Parser(__doc__)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='configs of models')
    parser.share('--size', '--json', '--force', '--cfg-options')
    args = parser.parse_args(argv)

    from mmseg_coop.analysis.flops import get_flops

    get_flops(**vars(args))


if __name__ == '__main__':
    program(main)
