"""Train, test and draw a small cooperative DeepLabV3+ on drawn street scenes.

Every step is a command that works as well on its own; the demo prints it before it runs it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmseg_coop_cli import CoopError, Parser, program

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
#: mIoU that the ensemble has to reach, in percent.
EXPECTED_MIOU = 60
#: What it writes into its folder.
WRITTEN = ('data', 'train', 'test', 'images')


def run(title: str, *command: object) -> None:
    """Print a command, its words without the Python interpreter, and run it in the project."""
    words = [str(word) for word in command]
    print(f'\n=== {title}\n$ python {shlex.join(words)}\n', flush=True)
    completed = subprocess.run([sys.executable, *words], cwd=ROOT, check=False)
    if completed.returncode:
        raise CoopError(f'the step "{title}" failed with exit code {completed.returncode}')


def data_options(data_root: Path, *splits: str) -> list[str]:
    """Options that point the splits of a config at the data."""
    options = [f'{split}_dataloader.dataset.data_root={data_root}' for split in splits]
    return ['--cfg-options', *options]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = Parser(__doc__)
    parser.share(
        '--out',
        type=Path,
        default=Path('demo/output'),
        help='folder for data, checkpoints and images; default: demo/output',
    )
    parser.share('--force', help='delete what a former demo wrote')
    args = parser.parse_args(argv)
    out = args.out.resolve()
    former = [out / name for name in WRITTEN if (out / name).exists()]
    if former and not args.force:
        raise CoopError(
            f'{", ".join(map(str, former))} would be deleted: name another folder with --out, or '
            'add --force.'
        )
    for folder in former:
        shutil.rmtree(folder)

    data, train, test, images = (out / name for name in WRITTEN)
    config = CONFIG.relative_to(ROOT)
    run(
        'Draw a miniature dataset',
        'tools/dataset_converters/make_mini_dataset.py',
        *('--layout', 'camvid', '--out', data),
    )
    run(
        'Train two networks that cooperate',
        *('tools/train.py', config, '--work-dir', train, *data_options(data, 'train', 'val')),
    )
    checkpoint = next(train.glob('best_mIoU_iter_*.pth'))
    run(
        'Test the best checkpoint: every network and their ensemble in one pass',
        *('tools/test.py', config, checkpoint, '--work-dir', test, '--show-dir', images),
        *data_options(data, 'test'),
    )

    results = max(test.glob('*/*.json'), key=lambda file: file.stat().st_mtime)
    metrics = json.loads(results.read_text())
    drawn = sorted(images.rglob('*.png'))
    print('\n=== Done')
    for name in ('top', 'bottom', 'ensemble'):
        print(f'{name:>10}: mIoU {metrics[f"{name}/mIoU"]:.1f}')
    print(f'checkpoint: {checkpoint}')
    print(f'   metrics: {results}')
    print(f'    images: {len(drawn)}, the first is {drawn[0]}')
    if metrics['ensemble/mIoU'] < EXPECTED_MIOU:
        raise CoopError(
            f'the ensemble reaches mIoU {metrics["ensemble/mIoU"]:.1f}, expected are at least '
            f'{EXPECTED_MIOU}.'
        )


if __name__ == '__main__':
    program(main)
