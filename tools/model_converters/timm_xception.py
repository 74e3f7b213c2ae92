"""Convert a file of timm's xception41, xception65 or xception71 to the names of Xception.

For files on disk; ``timm://xception65.tf_in1k`` as a checkpoint fetches and converts by itself.
The classifier is left out.
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
    from mmseg_coop.models.backbones.xception import convert_timm_state_dict

    convert_checkpoint(**vars(args), convert=convert_timm_state_dict)


if __name__ == '__main__':
    program(main)
