"""Draws what a data loader feeds the model."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.utils import track_iter_progress
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample

from ..errors import ConfigError
from ..visualization import CoopLocalVisualizer
from .evaluate import load_split
from .report import claim


def browse_dataset(
    config: str,
    *,
    split: str = 'train',
    number: int = 8,
    start: int = 0,
    views: int = 1,
    seed: int = 0,
    out: str | None = None,
    force: bool = False,
    cfg_options: Mapping[str, Any] | Sequence[str] | None = None,
) -> None:
    """Draw images and labels as they leave the pipeline, and print a line on each.

    Args:
        config: Config file.
        split: Whose data. Defaults to ``'train'``.
        number: Images. Defaults to 8.
        start: Index of the first. Defaults to 0.
        views: Random views of each. Defaults to 1.
        seed: Of the augmentations. Defaults to 0.
        out: Folder. Defaults to None: ``browse_dataset`` in the work directory of the config.
        force: Whether to replace files. Defaults to False.
        cfg_options: Values that override the config's, see :func:`load_config`. Defaults to None.

    Raises:
        ConfigError: The config is at fault, has no such split or image, or feeds no images.
        DataError: The data cannot be used.
        OSError: A file does not exist or cannot be read, or would be replaced.
    """
    cfg = load_split(config, split, cfg_options)
    dataset = DATASETS.build(cfg[f'{split}_dataloader']['dataset'])
    if start >= len(dataset):
        raise ConfigError(
            f'--start {start}: the {split} split has {len(dataset)} images, 0 to '
            f'{len(dataset) - 1}.'
        )
    folder = Path(out or Path(cfg.work_dir, 'browse_dataset'))
    files = []
    for index in range(start, min(len(dataset), start + number)):
        stem = f'{index:06d}_{Path(dataset.get_data_info(index)["img_path"]).stem}'
        suffixes = [f'_{view}' for view in range(views)] if views > 1 else ['']
        files += [(index, folder / f'{stem}{suffix}.png') for suffix in suffixes]
    claim(*(file for _, file in files), force=force)

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # what the transforms draw from
    torch.manual_seed(seed)
    preprocessor = cfg.get('model', {}).get('data_preprocessor') or {}
    visualizer = CoopLocalVisualizer(name='browse_dataset')
    visualizer.dataset_meta = dataset.metainfo
    lines = []
    for index, file in track_iter_progress(files, file=sys.stderr):
        item = dataset[index]
        inputs, sample = item['inputs'], item['data_samples']
        image = as_image(inputs, preprocessor.get('bgr_to_rgb', False))
        further = inputs[3:].numpy()
        visualizer.add_datasample(
            file.stem, image, sample, draw_pred=False, out_file=str(file), further=further
        )
        lines.append(f'{file.name}: {describe(inputs, sample, dataset.metainfo["classes"])}')
    print('\n'.join([*lines, f'\n{len(files)} figures in {folder}']))


def as_image(inputs: torch.Tensor, to_rgb: bool) -> np.ndarray[Any, Any]:
    """Image ``(H, W, 3)``, RGB, uint8, from what the pipeline packed, ``(C, H, W)``, 0 to 255."""
    if inputs.dim() != 3 or len(inputs) == 2:
        raise ConfigError(
            f'the pipeline feeds shape {tuple(inputs.shape)}; only images of shape (C, H, W) can '
            'be drawn, the first channel grey or the first three colours.'
        )
    image = inputs[:3] if len(inputs) > 2 else inputs.expand(3, -1, -1)
    image = image.flip(0) if to_rgb else image
    return image.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def describe(inputs: torch.Tensor, sample: SegDataSample, classes: Sequence[str]) -> str:
    """One line on a view: sizes and the share of every class in it."""
    parts = [f'{inputs.shape[1]}x{inputs.shape[2]} {str(inputs.dtype).removeprefix("torch.")}']
    if sample.get('flip'):
        parts.append('flipped')
    if 'gt_sem_seg' in sample:
        label = sample.gt_sem_seg.data
        names = {**dict(enumerate(classes)), 255: 'ignored'}
        values, counts = label.unique(return_counts=True)
        for place in counts.argsort(descending=True, stable=True).tolist():
            name = names.get(int(values[place]), str(int(values[place])))
            parts.append(f'{name} {100 * counts[place] / label.numel():.1f} %')
    return ', '.join(parts)
