"""Take one network out of a cooperative model, as a plain model of mmseg.

Writes NETWORK.py, a config with an EncoderDecoder and its test data, and NETWORK.pth, its weights
with the classes. The network must receive no feature maps from others; its logits are the same
alone, which is checked first. Where all its parts are of mmseg, the files work without mmseg-coop.

    mmseg-coop extract CONFIG CHECKPOINT --network light --out light
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import Parser, program


def main(argv: Sequence[str] | None = None) -> None:
    """Extract."""
    parser = Parser(__doc__)
    parser.share('config', 'checkpoint')
    parser.add_argument('--network', required=True, metavar='NAME', help='network to take out')
    parser.share('--out', required=True, metavar='DIR', help='folder to write to')
    parser.share('--force', '--cfg-options')
    args = parser.parse_args(argv)

    from mmseg_coop.apis.extract import extract_network

    extract_network(**vars(args))


if __name__ == '__main__':
    program(main)
