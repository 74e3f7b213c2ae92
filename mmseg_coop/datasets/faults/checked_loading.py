"""Puts the checking transforms in the place of the stock ones."""

from __future__ import annotations

from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS

from ..transforms import LoadSegAnnotations, LoadSegImage

_STOCK = {LoadImageFromFile: LoadSegImage, LoadAnnotations: LoadSegAnnotations}
_SCOPES = ('', 'mmcv', 'mmengine', 'mmseg', 'mmseg_coop')


def check_loading(dataset: dict[str, Any]) -> dict[str, Any]:
    """Make the config of a data set load files with the transforms that check them.

    ``LoadImageFromFile`` becomes :class:`LoadSegImage` and ``LoadAnnotations`` becomes
    :class:`LoadSegAnnotations`, also inside other transforms. Labels are held to the classes of the
    data set unless the pipeline says to which. Other transforms that load files are left alone.

    Args:
        dataset: Config of a data set or of a wrapper, which stays as it is.

    Returns:
        The changed config.

    Raises:
        ValueError: An argument has no counterpart.
    """
    if 'datasets' in dataset:
        return {**dataset, 'datasets': [check_loading(part) for part in dataset['datasets']]}
    if 'dataset' in dataset:
        return {**dataset, 'dataset': check_loading(dataset['dataset'])}
    if not dataset.get('pipeline'):
        return dict(dataset)
    # Only the class itself knows its classes; lazily built it looks at no file.
    built = DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []})
    classes = built.metainfo.get('classes')
    labels = dict(num_classes=len(classes), ignore_index=built.ignore_index) if classes else {}
    return {**dataset, 'pipeline': _replace(dataset['pipeline'], labels)}


def _replace(part: Any, labels: dict[str, int]) -> Any:
    """Go through a pipeline; `labels` is what its labels are held to."""
    if isinstance(part, (list, tuple)):
        return type(part)(_replace(item, labels) for item in part)
    if not isinstance(part, dict):
        return part
    step = {key: _replace(value, labels) for key, value in part.items()}
    checking = _counterpart(step.get('type'))
    if checking is LoadSegImage:
        step.pop('ignore_empty', None)  # what becomes of faulty files is not for the pipeline
        if step.pop('file_client_args', None) is not None:
            raise ValueError(
                'LoadImageFromFile(file_client_args=...) is out of date; give backend_args.'
            )
    if checking is LoadSegAnnotations:
        step = {**labels, **step}
    return {**step, 'type': checking.__name__} if checking else step


def _counterpart(name: Any) -> type | None:
    """What to use for the type of a transform; None if it is not one of those that load files."""
    for stock, checking in _STOCK.items():
        if name in (stock, checking):
            return checking
        scope, _, last = name.rpartition('.') if isinstance(name, str) else ('', '', '')
        if last in (stock.__name__, checking.__name__) and scope in _SCOPES:
            return checking
    return None
