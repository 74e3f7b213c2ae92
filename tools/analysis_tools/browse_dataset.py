"""Pictures of what a data loader feeds the model: images and labels as they leave the pipeline.

Writes one picture for every view of every image, NUMBER_NAME.png or, with several views,
NUMBER_NAME_VIEW.png: the image behind all augmentations, its labels laid over it, and the classes.
Ignored pixels are black. What follows, padding and normalisation, is the model's preprocessor's.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import DictAction
from mmengine.registry import init_default_scope
from mmengine.utils import ProgressBar
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample

from mmseg_coop.apis import check_data
from mmseg_coop.config import load_config
from mmseg_coop.visualization import CoopLocalVisualizer
from mmseg_coop_cli import short_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--split', choices=('train', 'val', 'test'), default='train', help='default: train'
    )
    parser.add_argument('--number', type=int, default=8, metavar='N', help='images; default: 8')
    parser.add_argument(
        '--start', type=int, default=0, metavar='I', help='the first of them; default: 0'
    )
    parser.add_argument(
        '--views', type=int, default=1, metavar='N', help='random views of each; default: 1'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the augmentations; default: 0')
    parser.add_argument(
        '--out-dir',
        type=Path,
        metavar='DIR',
        help='where to write; default: browse_dataset in the work directory of the config',
    )
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    args = parser.parse_args()
    for name, least in (('number', 1), ('start', 0), ('views', 1), ('seed', 0)):
        if getattr(args, name) < least:
            parser.error(f'--{name} has to be at least {least}, not {getattr(args, name)}')
    return args


def as_picture(inputs: torch.Tensor, to_rgb: bool) -> np.ndarray[Any, Any]:
    """Image ``(H, W, 3)``, RGB, uint8, from what the pipeline packed.

    Args:
        inputs: ``(3, H, W)`` in the range of 0 to 255.
        to_rgb: Whether it is BGR, which the model's preprocessor turns into RGB.

    Raises:
        ValueError: It has another number of channels.
    """
    if inputs.dim() != 3 or len(inputs) != 3:
        raise ValueError(
            f'the pipeline feeds shape {tuple(inputs.shape)}; only images of shape (3, H, W) can '
            'be drawn.'
        )
    image = inputs.flip(0) if to_rgb else inputs
    return image.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def describe(inputs: torch.Tensor, sample: SegDataSample, classes: list[str]) -> str:
    """One line on a view: sizes and the share of every class in it."""
    parts = [f'{inputs.shape[1]}x{inputs.shape[2]} {str(inputs.dtype).removeprefix("torch.")}']
    if sample.get('flip'):
        parts.append('flipped')
    if 'gt_sem_seg' in sample:
        label = sample.gt_sem_seg.data
        counts = torch.bincount(label.flatten().long(), minlength=256)
        for index in counts.argsort(descending=True, stable=True)[
            : int((counts > 0).sum())
        ].tolist():
            name = classes[index] if index < len(classes) else f'{index}'
            name = 'ignored' if index == 255 else name
            parts.append(f'{name} {100 * counts[index] / label.numel():.1f} %')
    return ', '.join(parts)


def main() -> None:
    """Draw."""
    args = parse_args()
    with short_errors():
        cfg = load_config(args.config, cfg_options=args.cfg_options)
        loader = cfg.get(f'{args.split}_dataloader')
        if loader is None:
            raise ValueError(f'{args.config} has no {args.split}_dataloader.')
        check_data(cfg, splits=(args.split,))
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        dataset = DATASETS.build(loader['dataset'])
        if args.start >= len(dataset):
            raise ValueError(
                f'--start {args.start}: the {args.split} split has {len(dataset)} images, 0 to '
                f'{len(dataset) - 1}.'
            )
        indices = range(args.start, min(len(dataset), args.start + args.number))
        out_dir = args.out_dir or Path(cfg.work_dir, 'browse_dataset')
        files = {}
        for index in indices:
            stem = f'{index:06d}_{Path(dataset.get_data_info(index)["img_path"]).stem}'
            for view in range(args.views):
                suffix = f'_{view}' if args.views > 1 else ''
                files[index, view] = out_dir / f'{stem}{suffix}.png'
        present = [str(file) for file in files.values() if file.exists()]
        if present and not args.force:
            raise FileExistsError(
                f'{present[0]!r} exists; add --force to replace it, or name another place.'
            )
        out_dir.mkdir(parents=True, exist_ok=True)

        random.seed(args.seed)
        np.random.seed(args.seed)  # noqa: NPY002  # what the transforms draw from
        torch.manual_seed(args.seed)
        preprocessor = cfg.get('model', {}).get('data_preprocessor') or {}
        visualizer = CoopLocalVisualizer(name='browse_dataset')
        visualizer.dataset_meta = dataset.metainfo
        lines = []
        bar = ProgressBar(len(files), file=sys.stderr)
        for (index, _), file in files.items():
            item = dataset[index]
            inputs, sample = item['inputs'], item['data_samples']
            image = as_picture(inputs, preprocessor.get('bgr_to_rgb', False))
            visualizer.add_datasample(file.stem, image, sample, draw_pred=False, out_file=str(file))
            lines.append(f'{file.name}: {describe(inputs, sample, dataset.metainfo["classes"])}')
            bar.update()
    print(file=sys.stderr)
    print('\n'.join(lines))
    print(f'\n{len(files)} pictures in {out_dir}')


if __name__ == '__main__':
    main()
