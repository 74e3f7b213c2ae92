"""Evaluates a checkpoint and keeps the confusion matrices, from which every score follows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from torch import Tensor

from mmseg_coop.analysis.measure import choose_device
from mmseg_coop.apis import check_data
from mmseg_coop.apis.model import load_model
from mmseg_coop.config import load_config
from mmseg_coop.evaluation import CoopIoUMetric

#: What the metric calls the only output of a model without names.
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
            raise ValueError(
                f'labels from {int(labels.min())} to {int(labels.max())}, but there are '
                f'{num_classes} classes; run check_dataset.py.'
            )
        pairs = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
        return (pairs.reshape(num_classes, num_classes).cpu().numpy(),)

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        """Count a batch and add it to what was counted before, so that memory stays small."""
        super().process(data_batch, data_samples)
        total = {
            name: (sum(result[name][0] for result in self.results),) for name in self.results[0]
        }
        self.results = [total]

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        """Confusion matrices by output."""
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what tools that evaluate a checkpoint have in common."""
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--split', choices=('val', 'test'), default='test', help='data; default: test'
    )
    parser.add_argument(
        '--max-images', type=int, metavar='N', help='stop after N images; default: all'
    )
    parser.add_argument(
        '--out-dir',
        type=Path,
        metavar='DIR',
        help='where to write; default: a folder named after the tool in the work directory of the '
        'config',
    )
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    parser.add_argument('--device', help='cpu, cuda or cuda:N; default: cuda where there is one')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line and check what :func:`add_arguments` has added."""
    args = parser.parse_args()
    if args.max_images is not None and args.max_images < 1:
        parser.error(f'--max-images has to be at least 1, not {args.max_images}')
    return args


def load(args: argparse.Namespace) -> Subject:
    """Build the model, load its weights and open its data.

    Args:
        args: The command line.

    Raises:
        FileNotFoundError: The config, the checkpoint or the data do not exist.
        ValueError: The config has no such split or is evaluated by another metric, the weights do
            not fit, or there is no such device.
    """
    cfg = load_config(args.config, cfg_options=args.cfg_options)
    loader_cfg, evaluator = (
        cfg.get(f'{args.split}_{what}') for what in ('dataloader', 'evaluator')
    )
    if loader_cfg is None or evaluator is None:
        raise ValueError(f'{args.config} has no {args.split}_dataloader or {args.split}_evaluator.')
    evaluators = evaluator if isinstance(evaluator, list) else [evaluator]
    settings = [e for e in evaluators if e['type'] in ('IoUMetric', 'CoopIoUMetric')]
    if not settings:
        raise ValueError(
            f'{args.split}_evaluator is {[e["type"] for e in evaluators]}; this tool takes its '
            'pairs of prediction and label from IoUMetric or CoopIoUMetric.'
        )
    check_data(cfg, splits=(args.split,))
    model = load_model(cfg, args.checkpoint, device=choose_device(args.device))
    loader = Runner.build_dataloader(loader_cfg, seed=0)
    if not loader.dataset.metainfo.get('classes'):
        raise ValueError(f'{type(loader.dataset).__name__} names no classes.')
    return Subject(
        cfg,
        model,
        loader,
        list(loader.dataset.metainfo['classes']),
        settings[0].get('ignore_index', 255),
    )


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
