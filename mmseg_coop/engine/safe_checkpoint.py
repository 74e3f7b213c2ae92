"""Checkpoints are data: loading one runs no code that lies in the file.

A ``.pth`` file is a pickle, and a pickle may name any function of the machine and call it. Here it
is read in two steps. The first notes what the file wants made; it calls nothing, and neither hashes
nor prints what it reads. (torch's ``weights_only=True`` does: 424 bytes of nested tuples occupy it
for good.) The second makes that, if it is what a training run writes.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import tarfile
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import load
from torch.serialization import StorageType
from torch.storage import TypedStorage

from ..errors import CheckpointError, printable

#: Set to 1, it hands every file to mmengine's own loaders, which run the code that a file carries.
TRUST_VARIABLE = 'MMSEG_COOP_TRUST_CHECKPOINTS'
#: The file of each text that a checkpoint has brought, by the hash of the text.
SOURCES: dict[int, str] = {}

_TORCH_LOAD = torch.load
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


@dataclass(eq=False)
class _Request:
    """What a file names or wants made: by a name with a dot, but for dicts and storages."""

    name: str
    args: Any = None
    state: Any = None
    items: list[tuple[Any, Any]] = field(default_factory=list)

    def __setitem__(self, key: object, value: object) -> None:
        self.items.append((key, value))


class _Unpickler(pickle._Unpickler):
    """Unpickler of what a training run writes."""

    stack: list[Any]

    def __init__(
        self, stream: IO[bytes], *, name: str, size: int, records: dict[str, int], encoding: str
    ) -> None:
        super().__init__(stream, encoding=encoding)
        self.name, self.size, self.records = name, size, records
        self.seen: set[int] = set()
        self.dtypes: dict[int, np.dtype] = {}  # each number of numpy uses one again
        self.repeats = 100_000  # values in what is used again: a few bytes unfold to any number

    def load(self) -> Any:
        return self._make(super().load(), 0)

    def find_class(self, module: str, name: str) -> _Request:
        return _Request(f'{IMPORT_MAPPING.get(module, module)}.{name}')  # Python 2's names

    def load_dict(self) -> None:
        self.stack.append(_Request('dict', ()))

    def load_call(self) -> None:
        args, function = self.stack.pop(), self.stack[-1]
        if function.args is not None:
            raise refusal(self.name, f'wants to run or make {function.name[:200]}')
        self.stack[-1] = _Request(function.name, args)

    def load_state(self) -> None:
        self.stack[-1].state = self.stack.pop()

    def load_storage(self) -> None:
        self.stack[-1] = _Request('storage', self.stack[-1])

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.EMPTY_DICT[0]: load_dict,
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: load_call,
        pickle.BUILD[0]: load_state,
        pickle.BINPERSID[0]: load_storage,
    }
    for _code in (
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),  # call
        *(pickle.DICT, pickle.ADDITEMS, pickle.FROZENSET),  # hash
        pickle.BYTEARRAY8,  # fills as much memory as it states
    ):
        del dispatch[_code[0]]

    def _make(self, value: Any, depth: int) -> Any:
        """Make what was noted, anew each time it is used, so that unfolding it is bounded."""
        if isinstance(value, str):
            SOURCES[hash(value)] = self.name
        if not isinstance(value, (list, tuple, _Request)) or value == ():
            return value
        if id(value) in self.dtypes:
            return self.dtypes[id(value)]
        parts = value.items if isinstance(value, _Request) else value
        if id(value) in self.seen:
            self.repeats -= 1 + len(parts)
        self.seen.add(id(value))
        if depth > 100 or self.repeats < 0:
            raise refusal(self.name, 'nests deeper, or repeats more, than any training run writes')
        depth += 1
        if not isinstance(value, _Request):
            return type(value)(self._make(part, depth) for part in parts)
        args, state = self._make(value.args, depth), self._make(value.state, depth)
        items = [(self._make(key, depth), self._make(part, depth)) for key, part in value.items]
        match value.name.replace('numpy._core', 'numpy.core'), args, state:  # since numpy 2
            case 'dict', _, None:
                return dict(items)
            case 'collections.OrderedDict', [] | [list()], None | {'_metadata': _}:
                result = OrderedDict([*args[0], *items] if args else items)
                if state is not None:
                    result._metadata = state['_metadata']  # type: ignore[attr-defined]
                return result
            case 'builtins.set', [list()], None:
                return set(args[0])
            case '_codecs.encode', [str(text), 'latin1'], None:  # bytes in protocol 2
                return text.encode('latin1')
            case 'torch.Size', [tuple()], None:
                return torch.Size(args[0])
            case 'torch.device', [str(), *_], None:
                return torch.device(*args)
            case 'storage', ['storage', StorageType() as kind, str(key), str(), int(count), *_], _:
                held = self.records.get(f'data/{key}', -1) if self.records else self.size
                if not 0 <= count * kind.dtype.itemsize <= held:
                    raise refusal(self.name, f'states {count:.0f} numbers and holds fewer')
                return self.persistent_load(args)
            case 'torch._utils._rebuild_tensor_v2', [TypedStorage() as storage, *_], None:
                held = storage._untyped_storage.nbytes()
                tensor = torch._utils._rebuild_tensor_v2(*args)
                # torch enlarges storages, and strides of 0 need none.
                needed = tensor.numel() * tensor.element_size()
                if storage._untyped_storage.nbytes() > held or needed > max(held, 2**30):
                    shape = tuple(tensor.shape)
                    raise refusal(self.name, f'has a tensor of shape {shape}, larger than its data')
                return tensor
            case 'torch._utils._rebuild_parameter', [torch.Tensor(), *_], None:
                return torch._utils._rebuild_parameter(*args)
            case 'numpy.dtype', [str(code), *_], None | [_, '<' | '|', None, None, None, *_] if (
                re.fullmatch(r'[biufc]\d+', code)  # of objects, numpy would take bytes for pointers
            ):
                return self.dtypes.setdefault(id(value), np.dtype(code))
            case 'numpy.core.multiarray.scalar', [np.dtype() as kind, bytes(data)], None:
                return np.frombuffer(data, kind, count=1)[0]
            case 'numpy.core.multiarray._reconstruct', _, [_, tuple(), np.dtype(), _, bytes()]:
                array = np.empty(0)
                array.__setstate__(state)
                return array
            case 'mmengine.logging.history_buffer.HistoryBuffer', [], {
                'max_length': int(length),
                '_log_history': np.ndarray() as log,
                '_count_history': np.ndarray() as counts,
            }:  # without the methods that it brings, which the class has
                return HistoryBuffer(log, counts, length)
            case 'builtins.getattr', [None, str(method)], None:  # of a history buffer
                return method
            case 'numpy.ndarray' | 'mmengine.logging.history_buffer.HistoryBuffer', None, None:
                return None  # an argument of what is made here without it
            case name, None, None if name in _DTYPES:
                return _DTYPES[name]
        raise refusal(self.name, f'wants to run or make {value.name[:200]}')


def load_checkpoint_data(
    file: str | os.PathLike[str] | IO[bytes],
    map_location: Any = None,
    *,
    name: str = 'a checkpoint in memory',
    **_: object,
) -> dict[str, Any]:
    """Load a checkpoint without running code from it. It may be called like :func:`torch.load`.

    It reads what a training run holds: dicts, lists, numbers, texts, tensors, parameters, numpy
    numbers and arrays, and mmengine's history buffers; and ``.safetensors`` files.

    Args:
        file: Path, or an open binary file.
        map_location: As of :func:`torch.load`; for ``.safetensors`` a device.
        name: What errors call an open file.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: If the file carries code, is damaged or is no checkpoint.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, 'rb') as opened:
            return load_checkpoint_data(opened, map_location, name=os.fspath(file))
    try:
        return _load(file, map_location, name)
    except CheckpointError:
        raise
    except Exception as error:  # torch and pickle raise whatever a damaged file makes them trip on
        # Only its own text: that of a KeyError is the whole key.
        text = error.args[0] if error.args and isinstance(error.args[0], str) else ''
        what = f'is damaged or no checkpoint of torch ({type(error).__name__}: {text[:200]})'
        raise refusal(name, what) from None


def refusal(name: str, what: str) -> CheckpointError:
    """Give the error about a file that is not what a training run writes."""
    return CheckpointError(
        f'{printable(name)} {printable(what[:300])}: refused, nothing of it ran. Get or write it '
        f'anew, or, if you trust it, set {TRUST_VARIABLE}=1 in the environment.'
    )


def _load(file: IO[bytes], map_location: Any, name: str) -> dict[str, Any]:
    if name.endswith('.safetensors'):
        return _load_safetensors(file.read(), map_location)
    start, size = file.read(4), file.seek(0, os.SEEK_END)
    file.seek(0)
    records: dict[str, int] = {}  # sizes by name, in a zip archive only
    if start == b'PK\x03\x04':
        reader = torch._C.PyTorchFileReader(file)  # another one may see other contents than torch
        # torch 2.1 does not tell the size.
        size_of = getattr(reader, 'get_record_size', lambda name: len(reader.get_record(name)))
        records = {name: size_of(name) for name in reader.get_all_records()}
        if 'constants.pkl' in records:
            raise refusal(name, 'is a TorchScript program')
        if sum(records.values()) > size:
            raise refusal(name, 'is an archive whose parts are larger than itself')
    elif tarfile.is_tarfile(file):
        raise refusal(name, 'has the tar format of torch before 0.2')
    file.seek(0)
    module = SimpleNamespace(
        __name__=__name__,
        Unpickler=_Unpickler,
        load=lambda stream, **options: _Unpickler(stream, **options).load(),
    )
    options: dict[str, Any] = dict(name=name, size=size, records=records, encoding='utf-8')
    checkpoint: object = _TORCH_LOAD(
        file, map_location=map_location, pickle_module=module, weights_only=False, **options
    )
    if not isinstance(checkpoint, dict):
        raise refusal(name, f'holds a {type(checkpoint).__name__} instead of a dict')
    return checkpoint


def _load_safetensors(data: bytes, map_location: Any) -> dict[str, Any]:
    """Load what holds tensors and texts alone; ours have the classes in one."""
    weights = {name: value.to(map_location or 'cpu') for name, value in load(data).items()}
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
    texts = header.get('__metadata__', {})
    meta = {key: json.loads(texts[key]) for key in ('dataset_meta',) if key in texts}
    return dict(meta=meta, state_dict=weights)
