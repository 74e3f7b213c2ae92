"""What a run does with files that cannot be used: the option ``--data-faults``."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..datasets import SkipFaultyDataset, check_loading
from ..engine.hooks import SkippedFilesHook


def set_data_faults(cfg: Config, splits: tuple[str, ...], data_faults: str) -> None:
    """Make a run check every file it loads, and stop at a faulty one or go on without it.

    The stock transforms that load files are replaced by those that check them, which a pipeline for
    tests does not name itself, since mmseg's inferencers look for the stock ones in it.

    Args:
        cfg: Config of the run, which is changed.
        splits: Data loaders that the run uses.
        data_faults: ``'stop'`` leaves data sets as they are, which includes those that the config
            itself wraps in :class:`SkipFaultyDataset`; ``'skip'`` wraps them, and adds the hook
            that counts.

    Raises:
        ValueError: A transform of the pipelines cannot be replaced.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        dataset: dict[str, Any] = check_loading(loader['dataset'])
        if data_faults == 'skip' and not _is(dataset, SkipFaultyDataset):
            dataset = dict(type='SkipFaultyDataset', test_mode=split != 'train', dataset=dataset)
        loader['dataset'] = dataset
    hooks = cfg.get('custom_hooks') or []
    if data_faults == 'skip' and not any(_is(hook, SkippedFilesHook) for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='SkippedFilesHook')]


def _is(part: Any, kind: type) -> bool:
    name = part.get('type')
    return name is kind or str(name).rpartition('.')[2] == kind.__name__
