"""Evaluates a checkpoint and keeps the confusion matrices, from which every score follows."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import ProgressBar

from ..apis import check_data, load_model
from ..apis.model import choose_device
from ..config import load_config
from ..errors import ConfigError, DataError
from ..visualization.panels import label_maps


class Subject(NamedTuple):
    """A trained model and the data it is evaluated on."""

    cfg: Config
    model: Any
    loader: Any
    classes: list[str]
    ignore_index: int


def open_model(
    config: str,
    checkpoint: str,
    *,
    split: str = 'test',
    device: str | None = None,
    cfg_options: Mapping[str, Any] | Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """Build a model with the weights of a checkpoint and check the data it is run on.

    Args:
        config: Config file.
        checkpoint: Checkpoint file.
        split: Whose data. Defaults to ``'test'``.
        device: Where the model goes. Defaults to None: CUDA where there is one.
        cfg_options: Values that override the config's, see :func:`load_config`. Defaults to None.
        **options: ``optimize`` and ``dtype``, as of :func:`load_model`.

    Returns:
        The model, which holds the config as ``cfg``, see :func:`load_model`.

    Raises:
        CoopError: The config, the data, the weights or the device do not fit.
        OSError: A file does not exist or cannot be read.
    """
    cfg = load_split(config, split, cfg_options)
    return load_model(cfg, checkpoint, device=choose_device(device), **options)


def load_split(
    config: str, split: str, cfg_options: Mapping[str, Any] | Sequence[str] | None
) -> Config:
    """Load a config and check the data of one of its splits."""
    cfg = load_config(config, cfg_options=cfg_options)
    if cfg.get(f'{split}_dataloader') is None:
        raise ConfigError(f'{config} has no {split}_dataloader.')
    check_data(cfg, splits=(split,))
    return cfg


def open_subject(config: str, checkpoint: str, *, split: str = 'test', **options: Any) -> Subject:
    """Build a model with its weights and open its data.

    Args:
        config: Config file.
        checkpoint: Checkpoint file.
        split: Data to evaluate it on. Defaults to ``'test'``.
        **options: As of :func:`open_model`.

    Raises:
        ConfigError: The config has no such split or is evaluated by another metric.
        CoopError: See :func:`open_model`.
        OSError: A file does not exist or cannot be read.
    """
    model = open_model(config, checkpoint, split=split, **options)
    evaluator = model.cfg.get(f'{split}_evaluator') or []
    evaluators = evaluator if isinstance(evaluator, list) else [evaluator]
    settings = [e for e in evaluators if e['type'] in ('IoUMetric', 'CoopIoUMetric')]
    if not settings:
        raise ConfigError(
            f'{split}_evaluator is {[e["type"] for e in evaluators]}; this tool takes its '
            'pairs of prediction and label from IoUMetric or CoopIoUMetric.'
        )
    loader = Runner.build_dataloader(model.cfg[f'{split}_dataloader'], seed=0)
    classes = loader.dataset.metainfo.get('classes')
    if not classes:
        raise ConfigError(
            f'{type(loader.dataset).__name__} names no classes; set metainfo=dict(classes=…).'
        )
    ignore_index = settings[0].get('ignore_index', 255)
    return Subject(model.cfg, model, loader, list(classes), ignore_index)


def evaluate(subject: Subject, max_images: int | None, title: str) -> dict[str, np.ndarray]:
    """Confusion matrices of every output, ``(K, K)`` with labels as rows.

    Args:
        subject: Model and data.
        max_images: Stop after that many images; None takes all.
        title: Stands before the progress bar.

    Raises:
        ConfigError: See :func:`maps_of`.
        DataError: A label is no class.
    """
    matrices: dict[str, Any] = defaultdict(int)
    count, classes = len(subject.loader.dataset), len(subject.classes)
    todo = count if max_images is None else min(count, max_images)
    print(title, file=sys.stderr)
    bar = ProgressBar(todo, file=sys.stderr)
    with torch.inference_mode():
        for batch in subject.loader:
            for sample in subject.model.test_step(batch)[: todo - bar.completed]:
                truth, maps = maps_of(sample)
                counted = truth != subject.ignore_index
                label = truth[counted].astype(np.int64)
                if label.max(initial=0) >= classes:
                    raise DataError(
                        f'{sample.img_path} has the label {label.max()}, but there are {classes} '
                        'classes; run check_dataset.py.'
                    )
                for name, prediction in maps.items():
                    pairs = np.bincount(label * classes + prediction[counted], None, classes**2)
                    matrices[name] += pairs.reshape(classes, classes)
                bar.update()
            if bar.completed == todo:
                break
    print(file=sys.stderr)
    return dict(matrices)


def maps_of(sample: Any, shape: Sequence[int] = ()) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Take the ground truth and the predictions out of a sample.

    Args:
        sample: A sample as a model predicts it.
        shape: What the maps have to be of. Defaults to ``()``: the truth's.

    Returns:
        The truth, ``(H, W)``, and the label map of every output by name.

    Raises:
        ConfigError: There is no truth, or a map is of another shape.
    """
    maps = label_maps(sample)
    truth = maps.pop('ground truth', None)
    if truth is None:
        raise ConfigError(f'{sample.img_path} has no labels; let the test pipeline load them.')
    for name, label_map in maps.items():
        if label_map.shape != (tuple(shape) or truth.shape):
            raise ConfigError(
                f'{name} of {sample.img_path} is predicted at {label_map.shape} pixels, but the '
                f'labels have {tuple(shape) or truth.shape}: use the same test pipeline for all '
                'models, in which labels are loaded behind what resizes the image.'
            )
    return truth, maps


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """IoU of every class in percent, ``(K,)``; NaN for a class that occurs nowhere."""
    true = np.diag(matrix)
    with np.errstate(invalid='ignore'):
        return 100 * true / (matrix.sum(0) + matrix.sum(1) - true)
