"""Evaluates a checkpoint and keeps the confusion matrices, from which every score follows."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from torch import Tensor
from typing_extensions import override

from ..apis import check_data, load_model
from ..apis.model import choose_device
from ..config import load_config
from ..errors import ConfigError, DataError
from ..evaluation import CoopIoUMetric

#: What the only output of a model without names is called.
PREDICTION = 'prediction'


class ConfusionMatrixMetric(CoopIoUMetric):
    """Takes the pairs of prediction and label from :class:`CoopIoUMetric`, but counts them all.

    ``compute_metrics`` returns the confusion matrix of every output, ``(K, K)`` with labels as rows
    and predictions as columns.
    """

    results: list[Any]

    @staticmethod
    def intersect_and_union(
        pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int
    ) -> tuple[np.ndarray]:
        """Count the pairs of a label map; the metric keeps whatever this returns."""
        mask = label != ignore_index
        predictions, labels = pred_label[mask].long(), label[mask].long()
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise DataError(
                f'labels from {int(labels.min())} to {int(labels.max())}, but there are '
                f'{num_classes} classes; run check_dataset.py.'
            )
        pairs = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
        return (pairs.reshape(num_classes, num_classes).cpu().numpy(),)

    @override
    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        super().process(data_batch, data_samples)
        # Added to what was counted before, so that memory stays small.
        self.results = [
            {name: (sum(result[name][0] for result in self.results),) for name in self.results[0]}
        ]

    @override
    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        matrices = {name: matrix for name, (matrix,) in results[0].items()}
        if len(matrices) > 1:
            matrices.pop('')  # it repeats one of the named outputs
        return {name or PREDICTION: matrix for name, matrix in matrices.items()}


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
) -> Any:
    """Build a model with the weights of a checkpoint and check the data it is run on.

    Args:
        config: Config file.
        checkpoint: Checkpoint file.
        split: Whose data. Defaults to ``'test'``.
        device: Where the model goes. Defaults to None: CUDA where there is one.
        cfg_options: Values that override the config's, see :func:`load_config`. Defaults to None.

    Returns:
        The model, which holds the config as ``cfg``, see :func:`load_model`.

    Raises:
        CoopError: The config, the data, the weights or the device do not fit.
        OSError: A file does not exist or cannot be read.
    """
    cfg = load_config(config, cfg_options=cfg_options)
    if cfg.get(f'{split}_dataloader') is None:
        raise ConfigError(f'{config} has no {split}_dataloader.')
    check_data(cfg, splits=(split,))
    return load_model(cfg, checkpoint, device=choose_device(device))


def open_subject(config: str, checkpoint: str, *, split: str = 'test', **options: Any) -> Subject:
    """Build a model with its weights and open its data.

    Args:
        config: Config file.
        checkpoint: Checkpoint file.
        split: Data to evaluate it on. Defaults to ``'test'``.
        **options: As of :func:`open_model`.

    Raises:
        ConfigError: The config has no such split or is evaluated by another metric.
        CoopError, OSError: See :func:`open_model`.
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
    """
    metric = ConfusionMatrixMetric(ignore_index=subject.ignore_index, prefix='confusion')
    metric.dataset_meta = subject.loader.dataset.metainfo
    count = len(subject.loader.dataset)
    todo = count if max_images is None else min(count, max_images)
    print(title, file=sys.stderr)
    bar = ProgressBar(todo, file=sys.stderr)
    with torch.inference_mode():
        for batch in subject.loader:
            samples = subject.model.test_step(batch)[: todo - bar.completed]
            metric.process(batch, [sample.to_dict() for sample in samples])
            bar.update(len(samples))
            if bar.completed == todo:
                break
    print(file=sys.stderr)
    return metric.compute_metrics(metric.results)


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """IoU of every class in percent, ``(K,)``; NaN for a class that occurs nowhere."""
    true = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - true
    return 100 * np.divide(true, union, out=np.full(len(true), np.nan), where=union > 0)
