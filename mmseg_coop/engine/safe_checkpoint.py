"""Checkpoints are data: loading one runs no code that lies in the file.

A ``.pth`` file is a pickle, and a pickle may name any function of the machine and call it. mmengine
loads such files as they are; with importing this module all its loaders (``load_from``,
``--resume``, ``init_cfg``, ``init_model``, ``timm://``, ``open-mmlab://``, ...) take only what a
training run writes, and refuse the rest before any of it runs.

One unpickler reads them with every version of torch. That of ``weights_only=True`` runs no code
either, but it hashes and prints what it refuses: 424 bytes of nested tuples occupy it for good.
"""

from __future__ import annotations

import functools
import os
import pickle
import re
import tarfile
import threading
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar, NoReturn

import mmengine.runner.checkpoint
import mmseg.models.losses.utils
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch.serialization import StorageType

from ..errors import CheckpointError, printable
from .config_text import check_names, read_config

#: Set to 1, it hands every file to mmengine's own loaders, which run the code that a file carries.
TRUST_VARIABLE = 'MMSEG_COOP_TRUST_CHECKPOINTS'

_TORCH_LOAD = torch.load
_DISPATCH: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch
_LOCK = threading.RLock()
_SOURCES: dict[int, str] = {}  # by the hash of each text that a checkpoint has brought: its file


class _RefusedError(Exception):
    """The part of a refusal that is known where the file's name is not."""


def _refuse(what: str) -> NoReturn:
    raise _RefusedError(what)


# What a file may name stands for one of the following, never for the original where that one could
# be made to do more than a checkpoint needs.


def _check_keys(keys: Iterable[Any]) -> None:
    """Nothing that nests: its hash may exceed the stack."""
    if any(isinstance(key, tuple) for key in keys):
        _refuse('has a tuple for a key')


def _make_set(members: list[Any]) -> set[Any]:
    _check_keys(members)
    return set(members)


def _make_ordered_dict(items: Iterable[Any] = ()) -> OrderedDict[Any, Any]:
    _check_keys(key for key, _ in items)
    return OrderedDict(items)


def _make_dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    """Plain numbers only: a dtype of objects would make numpy read bytes as pointers."""
    if not re.fullmatch(r'[biufc]\d+', code):
        _refuse(f'wants a numpy array of {code[:100]!r}, not of numbers')
    return np.dtype(code)


def _make_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype, count=1)[0]


def _make_array(*_: object) -> np.ndarray:
    """Only an empty one: its state follows."""
    return np.empty(0)


class _Buffer(HistoryBuffer):
    """An empty one: its state follows."""

    def __new__(cls) -> HistoryBuffer:
        return HistoryBuffer.__new__(HistoryBuffer)


def _get_method(owner: object, name: str) -> str:
    """A history buffer brings the names of its methods along; the class has them anyway."""
    return name


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle of protocol 2."""
    return text.encode('latin1')


_ALLOWED: dict[str, Any] = {
    'collections.OrderedDict': _make_ordered_dict,
    'builtins.set': _make_set,
    'builtins.getattr': _get_method,
    '_codecs.encode': _encode,
    'mmengine.logging.history_buffer.HistoryBuffer': _Buffer,
    'numpy.dtype': _make_dtype,
    'numpy.ndarray': _make_array,  # an argument of _reconstruct
    **{
        f'numpy.{core}.multiarray.{name}': function
        for core in ('core', '_core')  # before and from numpy 2
        for name, function in (('scalar', _make_scalar), ('_reconstruct', _make_array))
    },
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
    'torch._utils._rebuild_parameter': torch._utils._rebuild_parameter,
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
}


class _Memo(dict[int, Any]):
    """What a pickle may use again, each time as a copy.

    Else a few bytes of nested lists or tuples would unfold to any size when printed or hashed.
    """

    left = 100_000  # values in copies

    def __getitem__(self, index: int) -> Any:
        return self._copy(super().__getitem__(index))

    def _copy(self, value: Any) -> Any:
        if not isinstance(value, (dict, list, tuple, set)):
            return value
        self.left -= len(value)
        if self.left < 0:
            _refuse('repeats more values than any run writes')
        if isinstance(value, dict):
            return type(value)((key, self._copy(part)) for key, part in value.items())
        return type(value)(self._copy(part) for part in value)


class _DataUnpickler(pickle._Unpickler):
    """Unpickler of what a training run writes.

    The one in C checks only the names; this one also what is given a state.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_DISPATCH)
    for _opcode in (pickle.DUP, pickle.DICT, pickle.ADDITEMS, pickle.FROZENSET):
        del dispatch[_opcode[0]]  # would go past the memo and the keys

    def __init__(self, file: IO[bytes], **options: Any) -> None:
        super().__init__(file, **options)
        self.memo = _Memo()

    @staticmethod
    def holds(key: str, size: int) -> bool:
        """Whether the file has so many bytes for the storage of this key."""
        raise NotImplementedError

    def find_class(self, module: str, name: str) -> Any:
        path = f'{IMPORT_MAPPING.get(module, module)}.{name}'  # from the names of Python 2
        if path not in _ALLOWED:
            _refuse(f'wants to run or make {path}')
        return _ALLOWED[path]

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        _DISPATCH[pickle.SETITEM[0]](self)

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        _DISPATCH[pickle.SETITEMS[0]](self)

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_build(self) -> None:
        state = self.stack.pop()
        match self.stack[-1], state:
            case HistoryBuffer() as buffer, {
                'max_length': int(),
                '_log_history': np.ndarray(),
                '_count_history': np.ndarray(),
                **rest,
            } if not rest.keys() - {'statistics_methods'}:
                # Without the methods, which would become those of the class.
                state.pop('statistics_methods', None)
                buffer.__setstate__(state)
            case OrderedDict() as module_state, {'_metadata': metadata}:
                module_state._metadata = metadata  # type: ignore[attr-defined]
            case np.ndarray() as array, _:
                array.__setstate__(state)
            case np.dtype(), (_, '<' | '|', None, None, None, *_):
                pass
            case target, _:
                _refuse(f'wants to change a {type(target).__name__}')

    dispatch[pickle.BUILD[0]] = load_build

    def load_binpersid(self) -> None:
        match self.stack[-1]:
            case ('storage', StorageType() as kind, str(key), str(), int(count), *views) if (
                views in ([], [None])  # of torch before 0.4
            ):
                if count < 0 or not self.holds(key, count * kind.dtype.itemsize):
                    _refuse(f'states {count:.0f} numbers where it does not hold so many')
            case _:
                _refuse('wants to make what is no storage')
        self.stack[-1] = self.persistent_load(self.stack[-1])

    dispatch[pickle.BINPERSID[0]] = load_binpersid


def _check_container(file: IO[bytes], size: int) -> Callable[[str, int], bool]:
    """Check the file around the pickle; return whether it holds so many bytes for a storage."""
    start = file.read(4)
    file.seek(0)
    if not size:
        _refuse('is empty')
    if start != b'PK\x03\x04':
        if tarfile.is_tarfile(file):
            _refuse('has the tar format of torch before 0.2, which is not read')
        file.seek(0)
        parts: dict[str, int] = {}

        def take(key: str, part: int) -> bool:
            parts['all'] = parts.get('all', 0) - parts.get(f'data/{key}', 0) + part
            parts[f'data/{key}'] = part
            return parts['all'] <= size

        return take
    reader = torch._C.PyTorchFileReader(file)
    # torch 2.1 does not tell the size.
    size_of = getattr(reader, 'get_record_size', lambda name: len(reader.get_record(name)))
    records = {name: size_of(name) for name in reader.get_all_records()}
    file.seek(0)
    if 'constants.pkl' in records:
        _refuse('is a TorchScript program')
    if sum(records.values()) > size:
        _refuse('is an archive whose parts, compressed or shared, are larger than itself')
    return lambda key, part: records.get(f'data/{key}', -1) >= part


def _check_values(checkpoint: object, size: int, name: str) -> None:
    """Bound tensors and depth, and note the texts, which :class:`Config` must not run."""
    values = [(checkpoint, 0)]
    while values:
        value, depth = values.pop()
        if depth > 100:
            _refuse('nests more than 100 levels')
        if isinstance(value, str):
            _SOURCES[hash(value)] = name
        elif isinstance(value, (dict, list, tuple, set)):
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            values += [(part, depth + 1) for part in parts]
        elif isinstance(value, torch.Tensor):
            data = value.untyped_storage().nbytes()
            # torch enlarges storages, and strides of 0 need none.
            if data > size or value.numel() * value.element_size() > max(data, 2**30):
                _refuse(f'states a tensor of shape {tuple(value.shape)}, larger than its data')


def _check_deeds(checkpoint: object) -> None:
    """Refuse data that mmengine turns into deeds: configs it runs, paths it deletes."""
    if not isinstance(checkpoint, dict):
        _refuse(f'holds a {type(checkpoint).__name__} instead of a dict')
    meta, hub = checkpoint.get('meta'), checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for place, values in (('meta', meta), ('message_hub.runtime_info', info)):
        for key in ('cfg', 'config'):
            text = values.get(key) if isinstance(values, dict) else None
            if isinstance(text, str):
                try:
                    read_config(text)
                except ValueError as error:
                    _refuse(f'has a config in {place}[{key!r}] that {error}')
    for key, value in info.items() if isinstance(info, dict) else ():
        # What is no longer among the best or the last checkpoints is deleted, folders too.
        if str(key).startswith('best_ckpt') and value is not None:
            if not (isinstance(value, str) and Path(value).name.startswith('best_')):
                _refuse(f'wants {str(value)[:100]!r} deleted, as its best checkpoint')
        elif key == 'keep_ckpt_ids' and not all(type(number) is int for number in value):
            _refuse('wants files deleted that are no checkpoints (keep_ckpt_ids)')


def _trusted() -> bool:
    return os.environ.get(TRUST_VARIABLE) == '1'


def _error(name: str, what: str) -> CheckpointError:
    what = printable(what[:300])
    return CheckpointError(
        f'{printable(name)} {what}, which no checkpoint needs: refused, nothing of it ran. '
        f'If you trust the file, set {TRUST_VARIABLE}=1 in the environment.'
    )


def load_checkpoint_data(
    file: str | os.PathLike[str] | IO[bytes],
    map_location: Any = None,
    *,
    name: str = 'a checkpoint in memory',
    **_: object,
) -> dict[str, Any]:
    """Load a checkpoint without running code from it. It may be called like :func:`torch.load`.

    It reads what a training run holds: dicts, lists, numbers, texts, tensors, parameters, numpy
    numbers and arrays, and mmengine's history buffers.

    Args:
        file: Path, or an open binary file.
        map_location: As of :func:`torch.load`.
        name: What errors call an open file.

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
        mmseg_coop.errors.CheckpointError: planted.pth ... builtins.print...
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, 'rb') as opened:
            return load_checkpoint_data(opened, map_location, name=os.fspath(file))
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        holds = staticmethod(_check_container(file, size))
        unpickler = type('Unpickler', (_DataUnpickler,), {'holds': holds})
        module = SimpleNamespace(
            __name__=__name__,
            Unpickler=unpickler,
            load=lambda stream, **options: unpickler(stream, **options).load(),
        )
        checkpoint = _TORCH_LOAD(
            file, map_location=map_location, pickle_module=module, weights_only=False
        )
        _check_values(checkpoint, size, name)
        _check_deeds(checkpoint)
    except _RefusedError as refused:
        raise _error(name, str(refused)) from None
    except Exception as error:  # torch and pickle raise whatever a damaged file makes them trip on
        # Only its own text: that of a KeyError is the whole key.
        text = error.args[0] if error.args and isinstance(error.args[0], str) else ''
        raise CheckpointError(
            f'{printable(name)} is damaged or no checkpoint of torch '
            f'({type(error).__name__}: {printable(text[:200])}); get or write it anew.'
        ) from None
    return checkpoint


def _guard(loader: Callable[..., Any]) -> Callable[..., Any]:
    """Make a loader of mmengine, whatever it calls to find its file, read it as data."""

    @functools.wraps(loader)
    def load(filename: str, *args: Any, **kwargs: Any) -> Any:
        if _trusted():
            return loader(filename, *args, **kwargs)
        with _LOCK:
            previous = torch.load
            torch.load = functools.partial(load_checkpoint_data, name=filename)
            try:
                return loader(filename, *args, **kwargs)
            finally:
                torch.load = previous

    return load


def _guard_config(parse: Callable[[str, str], Config]) -> Callable[[str, str], Config]:
    """Make ``Config.fromstring`` read what a checkpoint has brought as data."""

    @functools.wraps(parse)
    def fromstring(cfg_str: str, file_format: str) -> Config:
        name = _SOURCES.get(hash(cfg_str)) if isinstance(cfg_str, str) else None
        if name is None or _trusted():
            return parse(cfg_str, file_format)
        try:
            config = read_config(cfg_str)
            check_names(config)
        except ValueError as error:
            raise _error(name, f'has a config that {error} (give one beside it)') from None
        return Config(config)

    return fromstring


def _guard_class_weight(load: Callable[..., Any]) -> Callable[..., Any]:
    """Make mmseg read weights of classes from JSON only: pickles and YAML run code."""

    @functools.wraps(load)
    def load_json(file: str, *args: Any, **kwargs: Any) -> Any:
        if not (_trusted() or file.endswith('.json')):
            raise CheckpointError(
                f'class_weight={printable(file)!r} may run code when it is read: give the numbers '
                'themselves, or the path of a .npy or .json file with them. If you trust the file, '
                f'set {TRUST_VARIABLE}=1 in the environment.'
            )
        return load(file, *args, **kwargs)

    return load_json


def guard_checkpoint_loaders() -> None:
    """Let mmengine, with loaders registered later too, and mmseg read checkpoints as data."""
    module = mmengine.runner.checkpoint
    find = CheckpointLoader._get_checkpoint_loader
    CheckpointLoader._get_checkpoint_loader = staticmethod(lambda path: _guard(find(path)))
    for name in [name for name in vars(module) if name.startswith('load_from_')]:
        setattr(module, name, _guard(getattr(module, name)))
    Config.fromstring = staticmethod(_guard_config(Config.fromstring))
    losses = mmseg.models.losses.utils
    losses.load = _guard_class_weight(losses.load)
