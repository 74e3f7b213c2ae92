"""Checkpoints are data: loading one runs no code that lies in the file.

A ``.pth`` file is a pickle, and a pickle may name any function of the machine and call it. mmengine
loads such files as they are; with importing this module all its loaders (``load_from``,
``--resume``, ``init_cfg``, ``init_model``, ``timm://``, ``open-mmlab://``, ...) take only what a
training run writes, and refuse the rest before any of it runs.
"""

from __future__ import annotations

import ast
import functools
import os
import pickle
import re
import tarfile
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar, NoReturn

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor

#: Set to 1, it hands every file to mmengine's own loaders, which run the code that a file carries.
TRUST_VARIABLE = 'MMSEG_COOP_TRUST_CHECKPOINTS'

_TORCH_LOAD = torch.load
_LOCK = threading.RLock()
_IN_MEMORY = 'a checkpoint in memory'


class CheckpointError(ValueError):
    """A file was refused: it carries code, is damaged or is no checkpoint."""


class _RefusedError(Exception):
    """The part of a refusal that is known where the file's name is not."""


def _refuse(what: str) -> NoReturn:
    raise _RefusedError(what)


# What a file may name stands for one of the following functions, never for the original where that
# one could be made to do more than a checkpoint needs.


def _make_dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    """Plain numbers only: a dtype of objects would make numpy read bytes as pointers."""
    if not re.fullmatch(r'[biufc]\d+', code):
        _refuse(f'wants a numpy array of {code!r}, not of numbers')
    return np.dtype(code)


def _make_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype, count=1)[0]


def _make_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """Only an empty one: its state follows."""
    return np.empty(0)


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle of protocol 2."""
    return text.encode('latin1')


def _get_statistics(owner: object, name: str) -> str:
    """A history buffer brings the names of its methods along; the class has them anyway."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        _refuse(f'wants to run getattr({owner!r}, {name!r})')
    return name


def _make_tensor(
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: object,
    *_: object,
) -> Tensor:
    """Within its storage: torch would enlarge the storage to whatever size the file states."""
    end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    numbers = (offset, *size, *stride)
    if min(numbers) < 0 or (
        0 not in size and end * storage.dtype.itemsize > storage._untyped_storage.nbytes()
    ):
        _refuse(f'states a tensor of shape {tuple(size)} that is larger than its data')
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, None)


def _make_parameter(data: Tensor, requires_grad: bool, hooks: object) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad)


_FUNCTIONS: dict[str, Callable] = {
    'collections.OrderedDict': OrderedDict,
    'builtins.set': set,
    'builtins.getattr': _get_statistics,
    '_codecs.encode': _encode,
    'numpy.dtype': _make_dtype,
    **{
        f'numpy.{core}.multiarray.{name}': function
        for core in ('core', '_core')  # before and from numpy 2
        for name, function in (('scalar', _make_scalar), ('_reconstruct', _make_array))
    },
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'torch._utils._rebuild_tensor_v2': _make_tensor,
    'torch._utils._rebuild_parameter': _make_parameter,
}
_CLASSES = {
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'numpy.ndarray': np.ndarray,  # an argument of _reconstruct
}
_OPCODES_OF_OTHERS = (
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.PERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)


class _DataUnpickler(pickle._Unpickler):
    """Unpickler of what a training run writes.

    The one in C checks only the names; this one also what is called, made and given a state.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    for _opcode in _OPCODES_OF_OTHERS:
        del dispatch[_opcode[0]]

    @staticmethod
    def room(key: object) -> int:
        """Bytes that the file has for the storage of this key."""
        raise NotImplementedError

    def find_class(self, module: str, name: str) -> Any:
        module = IMPORT_MAPPING.get(module, module)  # the names of Python 2 to those of 3
        path = f'{module}.{name}'
        if path in _FUNCTIONS or path in _CLASSES:
            return _FUNCTIONS.get(path) or _CLASSES[path]
        if module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _refuse(f'wants to run or make {path}')

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is known for known in _FUNCTIONS.values()):
            _refuse(f'wants to run {function!r}')
        self.stack[-1] = function(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        if self.stack[-1] is not HistoryBuffer or arguments:
            _refuse(f'wants to make {self.stack[-1]!r}')
        self.stack[-1] = HistoryBuffer.__new__(HistoryBuffer)

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is HistoryBuffer:
            # Without the methods, which would become those of the class.
            state = {key: value for key, value in state.items() if key != 'statistics_methods'}
            target.__setstate__(state)
        elif type(target) is OrderedDict and set(state) == {'_metadata'}:  # of a module's state
            target._metadata = state['_metadata']  # type: ignore[attr-defined]
        elif type(target) is np.ndarray and isinstance(state[2], np.dtype):
            target.__setstate__(state)
        elif not (isinstance(target, np.dtype) and state[1] in '<|' and state[2:5] == (None,) * 3):
            _refuse(f'wants to change {target!r}')

    dispatch[pickle.BUILD[0]] = load_build

    def load_binpersid(self) -> None:
        name, kind, key, _, count = self.stack[-1][:5]
        if name not in ('storage', b'storage'):
            _refuse(f'wants to make {name!r}')
        if not 0 <= count * kind.dtype.itemsize <= self.room(key):
            _refuse(f'states {count} numbers where it does not hold so many')
        self.stack[-1] = self.persistent_load(self.stack[-1])

    dispatch[pickle.BINPERSID[0]] = load_binpersid


def _check_container(file: IO[bytes]) -> Callable[[object], int]:
    """Check the file around the pickle; return how many bytes there are for a storage."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    if not size:
        _refuse('is empty')
    if start != b'PK\x03\x04':
        if tarfile.is_tarfile(file):
            _refuse('has the tar format of torch before 0.2, which is not read')
        file.seek(0)
        return lambda key: size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    file.seek(0)
    records = {member.filename.partition('/')[2]: member.file_size for member in members}
    if 'constants.pkl' in records:
        _refuse('is a TorchScript program')
    for member in members:
        if member.filename.startswith('/') or '..' in re.split(r'[/\\]', member.filename):
            _refuse(f'is an archive with the path {member.filename!r}')
        if member.compress_type != zipfile.ZIP_STORED:
            _refuse(f'is an archive with compressed parts ({member.filename!r})')
    if sum(member.file_size for member in members) > size:
        _refuse('is an archive whose parts are larger than itself')
    return lambda key: records.get(f'data/{key}', 0)


def _is_plain_config(text: str) -> bool:
    """Whether the text of a config is values under names, as mmengine writes it."""
    if '{{' in text:  # mmengine replaces what stands there before it runs the text
        return False
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    values = (
        *(ast.Module, ast.Assign, ast.Name, ast.Store, ast.Load, ast.Constant, ast.keyword),
        *(ast.Dict, ast.List, ast.Tuple, ast.Set, ast.UnaryOp, ast.USub),
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id == 'dict'):
                return False
        elif isinstance(node, ast.Assign):
            if not all(
                isinstance(target, ast.Name) and target.id not in ('dict', '_base_')
                for target in node.targets
            ):
                return False
        elif not isinstance(node, values):
            return False
    return True


def _check_content(checkpoint: object) -> None:
    """Refuse data that mmengine turns into deeds: configs it runs, paths it deletes."""
    if not isinstance(checkpoint, dict):
        _refuse(f'holds a {type(checkpoint).__name__} instead of a dict')
    meta = checkpoint.get('meta')
    for key in ('cfg', 'config') if isinstance(meta, dict) else ():
        text = meta.get(key)  # type: ignore[union-attr]
        if isinstance(text, str) and not _is_plain_config(text):
            _refuse(f'has a config in meta[{key!r}] that is a program, which mmengine runs: {text}')
    hub = checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for key, value in info.items() if isinstance(info, dict) else ():
        # What is no longer among the best or the last checkpoints is deleted, folders too.
        if str(key).startswith('best_ckpt') and value is not None:
            if not (isinstance(value, str) and Path(value).name.startswith('best_')):
                _refuse(f'wants {value!r} deleted, as its best checkpoint ({key})')
        elif key == 'keep_ckpt_ids' and not all(type(number) is int for number in value):
            _refuse(f'wants files deleted that are no checkpoints (keep_ckpt_ids={value!r})')


def load_checkpoint_data(
    file: str | os.PathLike[str] | IO[bytes],
    map_location: Any = None,
    *,
    name: str | None = None,
    **_: object,
) -> dict[str, Any]:
    """Load a checkpoint without running code from it. It may be called like :func:`torch.load`.

    It reads what a training run holds: dicts, lists, numbers, texts, tensors, parameters, numpy
    numbers and arrays, and mmengine's history buffers.

    Args:
        file: Path, or an open binary file.
        map_location: As of :func:`torch.load`.
        name: What errors call an open file. Defaults to the path.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: If the file carries code, is damaged or is no checkpoint.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> class Planted:
        ...     def __reduce__(self):
        ...         return print, ('taken over',)
        >>> with tempfile.NamedTemporaryFile(suffix='.pth') as file:
        ...     torch.save(dict(state_dict=Planted()), file)
        ...     load_checkpoint_data(file, name='planted.pth')
        Traceback (most recent call last):
        mmseg_coop.engine.safe_checkpoint.CheckpointError: planted.pth ... builtins.print...
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, 'rb') as opened:
            return load_checkpoint_data(opened, map_location, name=os.fspath(file))
    try:
        unpickler = type(
            'Unpickler', (_DataUnpickler,), {'room': staticmethod(_check_container(file))}
        )
        module = SimpleNamespace(
            __name__=__name__,
            Unpickler=unpickler,
            load=lambda stream, **options: unpickler(stream, **options).load(),
        )
        checkpoint = _TORCH_LOAD(
            file, map_location=map_location, pickle_module=module, weights_only=False
        )
        _check_content(checkpoint)
    except _RefusedError as refused:
        what = ' '.join(str(refused).split())
        what = what if len(what) <= 300 else f'{what[:300]} ...'
        raise CheckpointError(
            f'{name or _IN_MEMORY} {what}, which no checkpoint needs: refused, nothing of it ran. '
            f'If you trust the file, set {TRUST_VARIABLE}=1 in the environment.'
        ) from None
    except Exception as error:  # torch and pickle raise whatever a damaged file makes them trip on
        raise CheckpointError(
            f'{name or _IN_MEMORY} is damaged or no checkpoint of torch '
            f'({type(error).__name__}: {" ".join(str(error).split())[:200]}); get or write it anew.'
        ) from error
    return checkpoint


def _guard(loader: Callable[..., Any]) -> Callable[..., Any]:
    """Make a loader of mmengine, whatever it calls to find its file, read it as data."""

    @functools.wraps(loader)
    def load(filename: str, *args: Any, **kwargs: Any) -> Any:
        if os.environ.get(TRUST_VARIABLE) == '1':
            return loader(filename, *args, **kwargs)
        with _LOCK:
            previous = torch.load
            torch.load = functools.partial(load_checkpoint_data, name=filename)
            try:
                return loader(filename, *args, **kwargs)
            finally:
                torch.load = previous

    return load


def guard_checkpoint_loaders() -> None:
    """Let all loaders that mmengine knows by now read checkpoints as data."""
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        CheckpointLoader.register_scheme(prefix, _guard(loader), force=True)
