"""Figures of what a data loader feeds the model: images and labels as they leave the pipeline.

Writes one figure for every view of every image, NUMBER_NAME.png or, with several views,
NUMBER_NAME_VIEW.png: the image behind all augmentations, its labels laid over it, and the classes.
Ignored pixels are black. What follows, padding and normalisation, is the model's preprocessor's.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import Parser, at_least, program


def main(argv: Sequence[str] | None = None) -> None:
    """Draw."""
    parser = Parser(__doc__)
    parser.share('config')
    parser.share('--split', choices=['train', 'val', 'test'], default='train')
    for name, least, default, text in (
        ('number', 1, 8, 'images'),
        ('start', 0, 0, 'the first of them'),
        ('views', 1, 1, 'random views of each'),
        ('seed', 0, 0, 'of the augmentations'),
    ):
        parser.add_argument(
            f'--{name}', type=at_least(least), default=default, help=f'{text}; default: {default}'
        )
    parser.share('--out', metavar='DIR', help='default: browse_dataset in the work directory')
    parser.share('--force', '--cfg-options')
    args = parser.parse_args(argv)

    from mmseg_coop.analysis.browse import browse_dataset

    browse_dataset(**vars(args))


if __name__ == '__main__':
    program(main)
