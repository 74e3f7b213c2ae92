"""IoU of every output of a cooperative model from one pass."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import MessageHub, MMLogger, print_log
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from PIL import Image
from prettytable import PrettyTable
from torch import Tensor
from typing_extensions import override

from ..errors import DataError

#: Under this key of the message hub an evaluation leaves its table, for :class:`RecordIoUHook`.
TABLE_KEY = 'coop_iou_table'
IOU_METRICS = ('mIoU', 'mDice', 'mFscore')


@METRICS.register_module()
class CoopIoUMetric(IoUMetric):
    """mmseg's ``IoUMetric`` for all outputs at once.

    The chosen output (``test_cfg.output``) gives ``mIoU``, ``aAcc`` and so on, as for any model;
    every output gives them again under its name (``top/mIoU``, ``ensemble/mIoU``). The table has a
    row for each output and a column for each class, as Table 1 of the paper. A model with a single
    output is measured as mmseg does.

    A class without ground truth has IoU 0 where an output predicts it and none where it does not,
    so that it is left out of that output's mean. The first evaluation then names such classes in a
    warning, and the table says over how many classes each mean is.

    Args:
        outputs: Outputs whose label maps are written to ``output_dir``: names, or ``'all'``, each
            into a folder of its name. None writes the chosen one into ``output_dir`` itself, and so
            does ``'all'`` for a model with a single output. Defaults to None.
        palette: Write the label maps as palette PNG in the colours of the dataset, as VOC's
            evaluation server takes them. Defaults to False: as grey PNG, as mmseg does.
        iou_metrics: Some of ``'mIoU'``, ``'mDice'`` and ``'mFscore'``. Defaults to ``('mIoU',)``.
        ignore_index: Label of pixels that do not count. Defaults to 255.
        nan_to_num: What stands for the value of an absent class; None leaves it out of the mean.
            Defaults to None.
        beta: Weight of the recall in the F-score. Defaults to 1.
        output_dir: Folder for the label maps. Defaults to None: they are not written.
        format_only: Write the label maps and measure nothing. Defaults to False.
        collect_device: Where several processes meet, ``'cpu'`` or ``'gpu'``. Defaults to ``'cpu'``.
        prefix: Put before the names of the metrics, with a slash. Defaults to None.

    Raises:
        ValueError: Unknown metric, or a weight that is not positive.
        DataError: In an evaluation, if an image comes without a label or with one of another size
            than its prediction.
    """

    def __init__(
        self,
        *,
        outputs: Sequence[str] | str | None = None,
        palette: bool = False,
        iou_metrics: Sequence[str] | str = ('mIoU',),
        ignore_index: int = 255,
        nan_to_num: float | None = None,
        beta: float = 1,
        output_dir: str | None = None,
        format_only: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        iou_metrics = [iou_metrics] if isinstance(iou_metrics, str) else list(iou_metrics)
        unknown = [metric for metric in iou_metrics if metric not in IOU_METRICS]
        if unknown or not iou_metrics:
            raise ValueError(f'iou_metrics={iou_metrics} has to hold some of {IOU_METRICS}.')
        if not beta > 0:
            raise ValueError(f'beta={beta!r} has to be greater than 0.')
        super().__init__(
            ignore_index=ignore_index,
            iou_metrics=iou_metrics,
            nan_to_num=nan_to_num,
            beta=beta,
            collect_device=collect_device,
            output_dir=output_dir,
            format_only=format_only,
            prefix=prefix,
        )
        self.outputs = outputs
        self.palette = palette
        self._chosen = ''
        self._has_warned = False

    @override
    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            chosen = sample['pred_sem_seg']['data'].squeeze(0)
            self._chosen = sample.get('output', '')
            maps: dict[str, Tensor] = {
                name: sample['pred_outputs'][name].squeeze(0)
                for name in sample.get('output_names', ())
            }
            if maps and not chosen.equal(maps[sample['output']]):
                raise ValueError(
                    f'pred_sem_seg is not the output {sample["output"]!r} of the model: something '
                    'changed it behind the model; with test-time augmentation use '
                    "tta_model=dict(type='CoopTTAModel')."
                )
            if not self.format_only:
                label = self._label(sample, chosen)
                areas = {
                    name: self.intersect_and_union(label_map, label, num_classes, self.ignore_index)
                    for name, label_map in (maps or {'': chosen}).items()
                }
                # An empty name stands for the chosen output.
                self.results.append({'': areas[self._chosen], **areas})
            if self.output_dir is not None:
                self._write(sample, chosen, maps)

    @staticmethod
    def _label(sample: dict[str, Any], prediction: Tensor) -> Tensor:
        """The label map, ``(H, W)``, of the type and on the device of the prediction."""
        path = sample.get('img_path', '')
        if 'gt_sem_seg' not in sample:
            raise DataError(
                f'image {path} has no label to evaluate against; load labels in the pipeline, or '
                'write label maps alone by format_only=True and output_dir',
                path=path,
            )
        label: Tensor = sample['gt_sem_seg']['data'].squeeze(0).to(prediction)
        if label.shape != prediction.shape:
            sizes = ['x'.join(map(str, each.shape)) for each in (label, prediction)]
            raise DataError(
                f'the label of image {path} is {sizes[0]}, but its prediction is {sizes[1]} '
                '(height x width), the size at which the image was loaded; load labels behind what '
                'resizes the image',
                path=path,
            )
        return label

    def _write(self, sample: dict[str, Any], chosen: Tensor, maps: dict[str, Tensor]) -> None:
        """Write label maps as 8-bit PNG."""
        name = f'{Path(sample["img_path"]).stem}.png'
        if self.outputs is None or (self.outputs == 'all' and not maps):
            files = {Path(name): chosen}
        else:
            wanted = list(maps) if self.outputs == 'all' else self.outputs
            wanted = [wanted] if isinstance(wanted, str) else wanted
            files = {Path(output, name): maps[output] for output in wanted}
        # As mmseg does: the file's labels are the dataset's own, where 0 is no class.
        shift = int(sample.get('reduce_zero_label', False))
        for file, label_map in files.items():
            image = Image.fromarray((label_map.cpu().numpy() + shift).astype(np.uint8))
            if self.palette:
                colors = [[0, 0, 0]] * shift + list(self.dataset_meta['palette'])
                image.putpalette(np.array(colors, np.uint8).tobytes())
            target = Path(self.output_dir, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            image.save(target)

    @override
    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        logger: MMLogger = MMLogger.get_current_instance()
        if self.format_only:
            logger.info(f'results are saved to {self.output_dir}')
            return OrderedDict()
        if not results:
            raise ValueError('no image was evaluated; check dataset and sampler of the data loader')
        metrics: dict[str, float] = OrderedDict()
        rows: dict[str, dict[str, np.ndarray]] = {}
        for name in results[0]:
            areas = [sum(area) for area in zip(*(result[name] for result in results), strict=True)]
            self._warn_of_absent_classes(areas[-1])
            values = self.total_area_to_metrics(*areas, self.metrics, self.nan_to_num, self.beta)
            prefix = f'{name}/' if name else ''
            for metric, value in values.items():
                key = metric if metric == 'aAcc' else f'm{metric}'
                metrics[prefix + key] = float(np.round(np.nanmean(value) * 100, 2))
            values.pop('aAcc')
            rows[name] = values
        if len(rows) > 1:
            rows.pop('')  # it repeats one of the named outputs
        self._leave_table(rows)
        for metric in next(iter(rows.values())):
            print_log(f'\n{metric} per class:\n{self._table(metric, rows)}', logger)
        return metrics

    def _warn_of_absent_classes(self, pixels: Tensor) -> None:
        """Name the classes without ground truth, once a run; `pixels` is that of each, ``(C,)``."""
        classes = self.dataset_meta['classes']
        absent = [name for name, count in zip(classes, pixels, strict=True) if not count]
        if not absent or self._has_warned:
            return
        self._has_warned = True
        how = (
            'The mean of an output leaves out those that it does not predict; the table says over '
            'how many classes it is'
            if self.nan_to_num is None
            else f'Undefined values count as nan_to_num={self.nan_to_num}'
        )
        print_log(
            f'{len(absent)} of {len(classes)} classes have no pixel in the labels of this '
            f'evaluation: {", ".join(absent)}. {how}. If the classes do occur in the images, their '
            f'pixels may be ignored (ignore_index={self.ignore_index}), as is the foreground of '
            'masks saved as 0 and 255; tools/analysis_tools/check_dataset.py looks for that.',
            logger='current',
            level=logging.WARNING,
        )

    def _leave_table(self, rows: dict[str, dict[str, np.ndarray]]) -> None:
        """Leave the IoU of every output and class where :class:`RecordIoUHook` finds it."""
        if 'mIoU' not in self.metrics:
            return
        outputs = {}
        for name, values in rows.items():
            percent = values['IoU'] * 100
            outputs[name or 'prediction'] = dict(
                mIoU=round(float(np.nanmean(percent)), 2),
                IoU=[None if np.isnan(value) else round(float(value), 2) for value in percent],
            )
        table = dict(
            output=self._chosen or 'prediction',
            classes=list(self.dataset_meta['classes']),
            outputs=outputs,
        )
        MessageHub.get_current_instance().update_info(TABLE_KEY, table)

    def _table(self, metric: str, rows: dict[str, dict[str, np.ndarray]]) -> PrettyTable:
        """Outputs by classes and mean, as Table 1 of the paper."""
        table = PrettyTable()
        classes = self.dataset_meta['classes']
        table.field_names = ['output', *classes, f'mean {metric}']
        for name, values in rows.items():
            percent = values[metric] * 100
            mean, count = f'{np.nanmean(percent):.2f}', np.count_nonzero(~np.isnan(percent))
            if count < len(classes):
                mean += f' ({count} of {len(classes)} classes)'
            table.add_row([name or 'prediction', *(f'{v:.1f}' for v in percent), mean])
        return table
