"""Convert a file of timm's xception41, xception65 or xception71 to the names of Xception.

For files on disk; ``timm://xception65.tf_in1k`` as a checkpoint fetches and converts by itself.
The classifier is left out.
"""

from __future__ import annotations

from mmseg_coop.engine.checkpoint_io import make_parser, run
from mmseg_coop.models.backbones.xception import convert_timm_state_dict


def main() -> None:
    """Convert the file named on the command line."""
    run(make_parser(__doc__).parse_args(), convert_timm_state_dict)


if __name__ == '__main__':
    main()
