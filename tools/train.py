"""Train a model."""

from __future__ import annotations

from collections.abc import Sequence

from mmseg_coop_cli import RUN, Parser, program


def main(argv: Sequence[str] | None = None) -> None:
    """Train."""
    parser = Parser(__doc__)
    parser.share('config', *RUN)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT, or without it from the latest checkpoint of the work '
        'directory (from the start if there is none)',
    )
    parser.share('--amp', '--channels-last', '--compile')
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during the training'
    )
    args = parser.parse_args(argv)

    from mmseg_coop.apis import train

    train(**vars(args))


if __name__ == '__main__':
    program(main)
