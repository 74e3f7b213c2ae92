"""Checkpoints that survive a kill, a full disk and a limit on the size of files."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mmengine.hooks
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner, find_latest_checkpoint
from mmseg.registry import HOOKS
from typing_extensions import override

from ...errors import NumericError, first_few, printable
from ..config_text import read_config
from ..numeric_fault import non_finite, recovery_hint
from ..resume import accumulation, model_of, prepare_resume


def write_atomically(content: bytes, path: str | os.PathLike[str]) -> None:
    """Write a file so that its name always stands for all of the old or all of the new one.

    Args:
        content: What to write.
        path: The file, whose folder is made if need be.

    Raises:
        OSError: If it cannot be written, for instance on a full disk. The old file is intact.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same name each time: what a kill leaves behind is overwritten when the run goes on.
    part = path.with_name(f'.{path.name}.part')
    try:
        with open(part, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(
            error.errno, f'{error.strerror}; not written, earlier checkpoints are intact', str(path)
        ) from error
    with suppress(OSError):  # Windows opens no folders, and many shares do not sync them
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@register_backend('local_atomic')
class AtomicBackend(LocalBackend):
    """Local files, each written atomically."""

    @override
    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(obj, filepath)


@HOOKS.register_module()
class AtomicCheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's ``CheckpointHook``, whose newest checkpoint is whole at any moment.

    The configs of this project use it; in others it is chosen by
    ``default_hooks=dict(checkpoint=dict(type='AtomicCheckpointHook', ...))``. A local checkpoint,
    and the file ``last_checkpoint``, is written atomically. The oldest and the former best
    checkpoint are deleted when the new one is there, not before, for which the disk needs room for
    one checkpoint more. Only files that lie directly in the run's own folder are deleted, whatever
    the checkpoint that it resumes names.

    Between two steps of an optimizer that accumulates gradients, a checkpoint holds the gradients
    so far. A checkpoint from which the run cannot go on exactly, since it has no optimizer (as the
    best ones), another model or another optimizer, is refused.

    A checkpoint with infinite values or NaN in weights, buffers, their moving average or the
    optimizer is not written but ends the training; the loss shows them an iteration later only.
    Buffers of the model that hold such values from the start, as masks do, are left alone.

    A run that was killed goes on with ``tools/train.py CONFIG --resume``.
    """

    last_ckpt: str | None
    best_ckpt_path: str | None
    best_ckpt_path_dict: dict[str, str | None]
    _resumed: str | None = None
    _accumulation: dict[str, Any] | None = None

    @override
    def before_train(self, runner: Runner) -> None:
        info = runner.message_hub.runtime_info
        if 'keep_ckpt_ids' in info:  # a file's word: numbers only, which stay in the folder
            numbers = [step for step in info['keep_ckpt_ids'] if type(step) is int]
            runner.message_hub.update_info('keep_ckpt_ids', numbers)
        super().before_train(runner)
        if self.save_best is not None:  # the best one of a run that this one resumes is not ours
            self._best = {key: self._own_best(path) for key, path in self._best.items()}
        if self.file_client_args is None and type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend='local_atomic')
        # Without it mmengine does not note a new best score of an evaluation that comes first.
        self.last_ckpt = self._written = self._resumed
        self._constants = set(non_finite(dict(model_of(runner).named_buffers())))

    @override
    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:
            return
        self._resumed = runner._load_from or find_latest_checkpoint(runner.work_dir)
        prepare_resume(runner, checkpoint, str(self._resumed))
        text = checkpoint['meta'].get('cfg')
        if not isinstance(text, str):
            return
        try:
            changes = changes_of_config(read_config(text), runner.cfg)
        except ValueError as error:
            changes = [f'it cannot be told how, since the config of the checkpoint {error}']
        if changes:
            runner.logger.warning(
                'The config is not that of the run to be resumed:\n'
                + '\n'.join(printable(change[:1000]) for change in changes)
            )

    @override
    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        faulty = [
            name
            for name in [
                *non_finite(checkpoint['state_dict']),
                *non_finite(checkpoint.get('ema_state_dict')),
                *non_finite(checkpoint.get('optimizer'), 'optimizer'),
            ]
            if name.removeprefix('module.') not in self._constants
        ]
        if faulty:
            raise NumericError(
                f'The checkpoint of iteration {checkpoint["meta"]["iter"]} is not written, since '
                f'these are not finite: {first_few(faulty, 5)}. '
                + recovery_hint(runner, self._written)
            )
        if 'optimizer' in checkpoint and isinstance(runner.optim_wrapper, OptimWrapper):
            checkpoint['optimizer']['type'] = type(runner.optim_wrapper.optimizer).__name__
            if self._accumulation:
                checkpoint['accumulation'] = self._accumulation

    @override
    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self._path_of(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = self._path_of(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._accumulation = accumulation(runner)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self._written = self.last_ckpt
        if is_main_process():
            write_atomically(self.last_ckpt.encode(), osp.join(runner.work_dir, 'last_checkpoint'))
            for path in outdated:
                self._delete(path)

    @override
    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if not self.save_best:
            return
        former = self._best
        self._best = dict.fromkeys(former)  # mmengine would delete it before the new one is there
        super()._save_best_checkpoint(runner, metrics)
        new = self._best
        self._best = {key: new[key] or former.get(key) for key in new}
        for key, path in former.items():
            if path and new[key] not in (None, path) and is_main_process():
                self._delete(path)

    @property
    def _best(self) -> dict[str, str | None]:
        """Paths by the score, of which mmengine has one or several."""
        one = 'best_ckpt_path' in vars(self)
        return {'': self.best_ckpt_path} if one else dict(self.best_ckpt_path_dict)

    @_best.setter
    def _best(self, paths: dict[str, str | None]) -> None:
        if 'best_ckpt_path' in vars(self):
            self.best_ckpt_path = paths['']
        else:
            self.best_ckpt_path_dict = paths

    def _path_of(self, step: int) -> str:
        return str(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step)))

    def _own_best(self, path: str | None) -> str | None:
        """Give the path if it is that of a best checkpoint in the folder of this run."""
        if not isinstance(path, str) or not osp.basename(path).startswith('best_'):
            return None
        return path if osp.realpath(osp.dirname(path)) == osp.realpath(self.out_dir) else None

    def _delete(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)


def changes_of_config(
    old: dict[str, Any] | Config, new: dict[str, Any] | Config, *further: str
) -> list[str]:
    """List what differs between two configs in what decides the course of a training.

    The seed is left out: a resumed run takes that of its checkpoint.

    Args:
        old: One config.
        new: The other.
        *further: Other keys that matter.

    Returns:
        Sentences, sorted by key.
    """
    keys = (
        *('model', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'),
        *('custom_hooks', 'randomness', *further),
    )
    flat, gone = [], '(nothing)'
    for cfg in (old, new):
        parts = {key: cfg.get(key) for key in keys}
        randomness = parts['randomness'] or {}
        parts['randomness'] = {key: randomness[key] for key in randomness if key != 'seed'}
        flat.append(dict(_flatten(parts)))
    return [
        f'{key}: {flat[0].get(key, gone)!r} then, {flat[1].get(key, gone)!r} now'
        for key in sorted(set(flat[0]) | set(flat[1]))
        if flat[0].get(key, gone) != flat[1].get(key, gone)
    ]


def _flatten(value: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f'{prefix}.{key}' if prefix else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from _flatten(item, f'{prefix}.{number}')
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value
