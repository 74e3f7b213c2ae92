"""Export a trained model as one self-contained ONNX file, checked against PyTorch first.

The graph takes `image`, float32 RGB of 0 to 255, (N, 3, H, W), followed by what further channels
the model has, such as depth, as they are stored, and normalises it itself. It returns
one array of logits an output, (N, classes, H, W), under the output's name: every network's and
`ensemble`, or `prediction` for a model with a single output. Classes, palette and the resizing of
the test pipeline lie in the file's metadata; onnx_inference.py needs nothing else.

Sizes are fixed unless --dynamic is given. Of a model that is evaluated with a sliding window the
graph is one window; its metadata say how onnx_inference.py has to move it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import Parser, program


def main(argv: Sequence[str] | None = None) -> None:
    """Export."""
    parser = Parser(__doc__)
    parser.share('config', 'checkpoint')
    parser.share(
        '--out',
        metavar='FILE.onnx',
        help='file to write; default: beside the checkpoint, under its name',
    )
    parser.share('--size', '--outputs', '--optimize', '--force', '--cfg-options')
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='take images of any size (and batches of any size with the trace exporter)',
    )
    parser.add_argument(
        '--exporter',
        choices=['trace', 'dynamo'],
        default='trace',
        help="torch's exporter: by tracing, or through torch.export (torch >= 2.5); default: trace",
    )
    parser.add_argument(
        '--opset',
        type=int,
        metavar='N',
        help='version of the ONNX operators; default: 17 by tracing, 18 through torch.export',
    )
    parser.add_argument(
        '--program',
        action='store_true',
        help='also write what torch.export makes of the model, as FILE.pt2 (torch >= 2.4)',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-4,
        help='largest difference to PyTorch, relative to the largest logit (or to 1, if the logits '
        'are smaller); default: 1e-4',
    )
    args = parser.parse_args(argv)

    from mmseg_coop.apis.export import export_onnx

    export_onnx(**vars(args))


if __name__ == '__main__':
    program(main)
