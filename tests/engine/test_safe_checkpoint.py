from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import mmengine.runner.checkpoint as checkpoint_module
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint
from mmseg.apis import MMSegInferencer
from mmseg.registry import MODELS
from torch import nn

import mmseg_coop  # noqa: F401  # all that a config's custom_imports does
from mmseg_coop.engine import AtomicCheckpointHook
from mmseg_coop.engine.safe_checkpoint import TRUST_VARIABLE, load_checkpoint_data
from mmseg_coop.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'


class Planted:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def touch(marker):
    return f'open({str(marker)!r}, "w").close()'


def spoiled(**parts):
    """A checkpoint like that of a training, with some parts replaced."""
    return dict(
        dict(
            meta=dict(iter=2, epoch=0, seed=1, cfg='model = dict(type="X")\n'),
            state_dict=OrderedDict(weight=torch.ones(3)),
            message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
            optimizer=dict(state={0: dict(momentum_buffer=torch.zeros(3))}, param_groups=[]),
        ),
        **parts,
    )


def write_zip(path, data, storages=(), prefix='archive/'):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(prefix + 'data.pkl', data)
        archive.writestr(prefix + 'version', '3\n')
        for key, content in enumerate(storages):
            archive.writestr(f'{prefix}data/{key}', content)


def replace_in_pickle(path, old, new):
    """Save a tensor and change a number of its pickle."""
    buffer = io.BytesIO()
    torch.save(spoiled(state_dict=OrderedDict(weight=torch.arange(7.0))), buffer)
    with zipfile.ZipFile(buffer) as archive:
        data = archive.read('archive/data.pkl')
        storages = [archive.read(f'archive/data/{key}') for key in range(2)]
    assert data.count(old) == 1
    write_zip(path, data.replace(old, new), storages)


# Files that run something when a plain pickle reads them, each with the function it names.
# ----------------------------------------------------------------------------------------


def planted_at(place):
    def write(path, marker):
        planted = Planted(os.system, f'touch {marker}')
        torch.save(spoiled(**place(planted)), path)

    return write


def calling(function, *arguments):
    def write(path, marker):
        given = [touch(marker) if a is touch else a for a in arguments]
        torch.save(spoiled(state_dict=Planted(function, *given)), path)

    return write


def subprocess_popen(path, marker):
    code = touch(marker) + '\n'
    torch.save(spoiled(meta=Planted(subprocess.call, [sys.executable, '-c', code])), path)


def getattr_chain(path, marker):
    system = Planted(getattr, Planted(importlib.import_module, 'os'), 'system')
    torch.save(spoiled(meta=Planted(list, Planted(map, system, [f'touch {marker}']))), path)


def getattr_of_an_allowed_class(path, marker):
    scope = Planted(getattr, HistoryBuffer.__init__, '__globals__')
    torch.save(spoiled(meta=Planted(eval, touch(marker), scope)), path)


def nested_load(path, marker):
    inner = path.with_suffix('.inner')
    torch.save(Planted(os.system, f'touch {marker}'), inner)
    torch.save(
        spoiled(meta=Planted(functools.partial(torch.load, weights_only=False), inner)), path
    )


def numpy_load(path, marker):
    inner = path.with_suffix('.npy')
    np.save(inner, np.array([Planted(os.system, f'touch {marker}')], object), allow_pickle=True)
    torch.save(spoiled(meta=Planted(np.load, str(inner), None, True)), path)


def protocol_4(path, marker):
    planted = spoiled(meta=Planted(os.system, f'touch {marker}'))
    torch.save(planted, path, pickle_protocol=4)


def old_instance_opcode(path, marker):
    write_zip(path, b'(S' + repr(touch(marker)).encode() + b'\ni__builtin__\nexec\n.')


def old_object_opcode(path, marker):
    write_zip(path, b'(c__builtin__\nexec\nS' + repr(touch(marker)).encode() + b'\no.')


def legacy_format(path, marker):
    planted = spoiled(meta=Planted(os.system, f'touch {marker}'))
    torch.save(planted, path, _use_new_zipfile_serialization=False)


def legacy_magic_number(path, marker):
    path.write_bytes(pickle.dumps(Planted(os.system, f'touch {marker}'), 2))


def legacy_storage_keys(path, marker):
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    start = buffer.getvalue()[: -len(pickle.dumps([], 2))]
    path.write_bytes(start + pickle.dumps(Planted(os.system, f'touch {marker}'), 2))


def legacy_tar(path, marker):
    parts = dict(
        storages=pickle.dumps(0, 2) + pickle.dumps([], 2),
        tensors=pickle.dumps(0, 2),
        pickle=pickle.dumps(Planted(os.system, f'touch {marker}'), 2),
    )
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as archive:
        for name, content in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def attributes_of_a_buffer(path, marker):
    """A history buffer's state may bring methods, which become those of all buffers."""
    buffer = HistoryBuffer([1.0], [1])
    buffer.__dict__['planted'] = Planted(os.system, f'touch {marker}')
    torch.save(spoiled(message_hub=dict(log_scalars=dict(loss=buffer))), path)


class Program(nn.Module):
    """Writes a file when it is loaded by TorchScript."""

    def __init__(self, marker):
        super().__init__()
        self.marker = str(marker)

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return (self.marker, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.marker = state[0]
        self.training = state[1]
        torch.save([1], self.marker)


def script_parts(marker):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Program(marker)), buffer)
    marker.unlink(missing_ok=True)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def script_program(path, marker):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in script_parts(marker).items():
            archive.writestr(name, content)


def two_directories(path, marker):
    """Python's zipfile reads the directory before the end, torch the one whose offset is stated."""
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in script_parts(marker).items():
            archive.writestr(name, content)
        archive.writestr('archive/padding', b'')
        archive.filelist[-1].comment = b'x' * 500
        archive._didModify = True
    data = path.read_bytes()
    end = data[-22:]
    size = struct.unpack('<I', end[12:16])[0]
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, 'w') as archive:
        archive.writestr('archive/data.pkl', pickle.dumps({}, 2))
        archive.writestr('archive/version', '3\n')
    listed = struct.unpack('<I', plain.getvalue()[-10:-6])[0]
    archive = zipfile.ZipFile(plain, 'a')
    archive.filelist[-1].comment = b'x' * (size - listed)
    archive._didModify = True
    archive.close()
    start = struct.unpack('<I', plain.getvalue()[-6:-2])[0]
    path.write_bytes(data[:-22] + plain.getvalue()[start:-22] + end)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ['archive/data.pkl', 'archive/version']


SYSTEM = f'{os.system.__module__}.system'
CODE = {
    'in meta': (planted_at(lambda planted: dict(meta=planted)), SYSTEM),
    'in optimizer state': (
        planted_at(lambda p: dict(optimizer=dict(state={0: dict(step=[(p,)])}))),
        SYSTEM,
    ),
    'in message hub': (
        planted_at(lambda p: dict(message_hub=dict(runtime_info=OrderedDict(eta=p)))),
        SYSTEM,
    ),
    'as a key': (planted_at(lambda p: dict(state_dict=OrderedDict([(p, 1)]))), SYSTEM),
    'eval': (calling(eval, touch), 'builtins.eval'),
    'exec': (calling(exec, touch), 'builtins.exec'),
    'subprocess': (subprocess_popen, 'subprocess.call'),
    'getattr chain': (getattr_chain, 'builtins.list'),
    'getattr of an allowed class': (getattr_of_an_allowed_class, 'builtins.eval'),
    'partial': (nested_load, 'functools.partial'),
    'numpy.load': (numpy_load, 'numpy.*load'),
    'protocol 4': (protocol_4, SYSTEM),
    'INST': (old_instance_opcode, ''),
    'OBJ': (old_object_opcode, 'builtins.exec'),
    'legacy format': (legacy_format, SYSTEM),
    'legacy magic number': (legacy_magic_number, SYSTEM),
    'legacy storage keys': (legacy_storage_keys, SYSTEM),
    'legacy tar': (legacy_tar, 'tar format'),
    'attributes of a buffer': (attributes_of_a_buffer, SYSTEM),
    'TorchScript that runs when loaded': (script_program, 'TorchScript'),
    'two central directories': (two_directories, 'TorchScript'),
}


@pytest.mark.filterwarnings('ignore')  # torch's, about the formats
@pytest.mark.parametrize(('write', 'named'), CODE.values(), ids=list(CODE))
def test_code_is_refused_before_it_runs(write, named, tmp_path):
    path, marker = tmp_path / 'planted.pth', tmp_path / 'marker'
    write(path, marker)
    with pytest.raises(CheckpointError, match=named) as refused:
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert str(path) in str(refused.value)
    assert not marker.exists()
    # The same file does harm where it is not refused. Afterwards some of them are no checkpoints.
    with contextlib.suppress(Exception):
        torch.load(path, map_location='cpu', weights_only=False)
    assert marker.exists()


def test_the_message_names_file_function_and_switch(tmp_path):
    path = tmp_path / 'planted.pth'
    torch.save(Planted(eval, '1'), path)
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint_data(path)
    assert str(refused.value) == (
        f'{path} wants to run or make builtins.eval, which no checkpoint needs: refused, nothing '
        f'of it ran. If you trust the file, set {TRUST_VARIABLE}=1 in the environment.'
    )


def test_the_switch_hands_the_file_to_mmengine(tmp_path, monkeypatch):
    path, marker = tmp_path / 'planted.pth', tmp_path / 'marker'
    CODE['in meta'][0](path, marker)
    monkeypatch.setenv(TRUST_VARIABLE, '1')
    assert CheckpointLoader.load_checkpoint(str(path))['meta'] == 0
    assert marker.exists()
    monkeypatch.setenv(TRUST_VARIABLE, '0')
    with pytest.raises(CheckpointError):
        CheckpointLoader.load_checkpoint(str(path))


# Files that are damaged, too large, or dangerous as data
# -------------------------------------------------------


def whole(path):
    torch.save(spoiled(), path)
    return path.read_bytes()


def truncated(path):
    path.write_bytes(whole(path)[:-200])


def truncated_legacy(path):
    torch.save(spoiled(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path):
    data = bytearray(whole(path))
    at = data.index(b'data.pkl') + 60
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)


def path_traversal(path):
    whole(path)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('archive/../../../escaped', 'x')


def absolute_path(path):
    whole(path)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('/escaped', 'x')


def zip_bomb(path):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(200 * 2**20))
        archive.writestr('archive/version', '3\n')


def overlapping_parts(path):
    """One stored part, listed by the directory under many names."""
    write_zip(path, pickle.dumps({}, 2), [bytes(10_000)])
    with zipfile.ZipFile(path, 'a') as archive:
        first = archive.filelist[-1]
        for key in range(1, 50):
            again = zipfile.ZipInfo(f'archive/data/{key}')
            again.file_size, again.compress_size, again.CRC = 10_000, 10_000, first.CRC
            again.header_offset = first.header_offset
            archive.filelist.append(again)
        archive._didModify = True


def storage_beyond_the_file(path):
    # The count of numbers of a storage stands at the end of its persistent id.
    replace_in_pickle(path, b'K\x07tq', b'J' + struct.pack('<i', 2**30) + b'tq')


def tensor_beyond_its_storage(path):
    replace_in_pickle(path, b'K\x07\x85', b'J' + struct.pack('<i', 2**30) + b'\x85')


def negative_offset(path):
    replace_in_pickle(path, b'QK\x00K\x07\x85', b'QJ\xf0\xff\xff\xffK\x07\x85')


def huge_legacy_storage(path):
    torch.save(torch.zeros(1), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    at = data.index(b'cpuq')  # the location, then its memo number, then the count
    assert data[at + 5 : at + 7] == b'K\x01'
    path.write_bytes(data[: at + 5] + b'\x8a\x06' + (2**40).to_bytes(6, 'little') + data[at + 7 :])


def tensor_without_strides(path):
    torch.save(spoiled(state_dict=OrderedDict(weight=torch.ones(1).expand(2**60))), path)


def buffer_with_a_method(path):
    buffer = HistoryBuffer([1.0], [1])
    buffer.mean = 'no method'
    torch.save(spoiled(message_hub=dict(log_scalars=dict(loss=buffer))), path)


def array_of_structures(path):
    """The state makes a dtype of numbers one of objects."""
    kind = Planted(np.dtype, 'f8', False, True)
    data = pickle.dumps(kind, 2)[:-1]
    state = pickle.dumps((3, '|', None, ('a',), {'a': (1, 0)}, 8, 1, 0), 2)[2:-1]
    write_zip(path, data + state + b'b.')


def many_legacy_storages(path):
    torch.save([torch.zeros(100) for _ in range(9)], path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.count(b'K\x64N') == 9
    path.write_bytes(data.replace(b'K\x64N', b'M\xe8\x03N'))


def compressed_storage(path):
    torch.save(spoiled(state_dict=OrderedDict(weight=torch.zeros(10_000))), path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def torchscript(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


def numpy_pointers(path):
    """A numpy scalar of objects, whose bytes would be taken for an address."""
    torch.save(spoiled(meta=Planted(np.float64(1).__reduce__()[0], np.dtype('O'), b'A' * 8)), path)


def saving(**parts):
    return lambda path: torch.save(spoiled(**parts), path)


def config_program(key, text):
    return saving(meta={'epoch': 0, 'iter': 1, key: text})


DAMAGED = {
    'empty': (lambda path: path.touch(), 'is empty'),
    'random bytes': (lambda path: path.write_bytes(random.Random(0).randbytes(5000)), 'damaged'),
    'a web page': (lambda path: path.write_text('<!DOCTYPE html><p>not found'), 'damaged'),
    'truncated': (truncated, 'damaged'),
    'truncated legacy': (truncated_legacy, 'damaged'),
    'overwritten with zeros': (flipped, 'damaged'),
    'path traversal': (path_traversal, 'damaged'),
    'absolute path': (absolute_path, 'damaged'),
    'zip bomb of 200 MB': (zip_bomb, 'compressed'),
    'overlapping parts': (overlapping_parts, 'larger than itself'),
    'storage beyond the file': (storage_beyond_the_file, 'states 1073741824 numbers'),
    'tensor beyond its storage': (
        tensor_beyond_its_storage,
        r'shape \(1073741824,\), larger|not resizable',
    ),
    'negative offset': (negative_offset, 'damaged'),
    'legacy storage of 4 TB': (huge_legacy_storage, 'states 1099511627776 numbers'),
    'TorchScript': (torchscript, 'TorchScript program'),
    'numpy objects': (numpy_pointers, "numpy array of 'O"),
    'a list': (lambda path: torch.save([torch.ones(1)], path), 'holds a list'),
    'a whole module': (lambda path: torch.save(nn.Linear(1, 1), path), 'torch.nn.*Linear'),
    'config that is a program': (
        config_program('config', 'import os\nos.system("id")\n'),
        r"meta\['config'\] that is a program",
    ),
    'config with a call': (config_program('cfg', 'a = [print(1)]'), 'program'),
    'config with a new dict': (config_program('cfg', 'dict = eval\na = dict("1")'), 'program'),
    'config with a base': (config_program('cfg', "_base_ = '/tmp/x.py'"), 'program'),
    'config with a placeholder': (
        config_program('cfg', "a = {{'$NONE:print(1)'}}"),
        'program',
    ),
    'tensor of 4 EB in one number': (tensor_without_strides, 'larger than its data'),
    'buffer with a method': (buffer_with_a_method, 'wants to change a HistoryBuffer'),
    'array of structures': (array_of_structures, 'wants to change a .*(DType|dtype)'),
    'legacy storages that share the file': (many_legacy_storages, 'states .* numbers'),
    'compressed storage': (compressed_storage, 'compressed'),
    'config of a megabyte': (
        config_program('cfg', f'a = {[0] * 400_000}'),
        'characters, more than',
    ),
    'a folder to delete as the best': (
        saving(message_hub=dict(runtime_info=dict(best_ckpt='/home/user'))),
        "wants '/home/user' deleted",
    ),
    'files to delete as the oldest': (
        saving(message_hub=dict(runtime_info=dict(keep_ckpt_ids=['/../../x']))),
        'wants files deleted',
    ),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(('write', 'message'), DAMAGED.values(), ids=list(DAMAGED))
def test_other_files_are_refused_with_the_reason(write, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'sub' / 'odd.pth'
    path.parent.mkdir()
    write(path)
    with pytest.raises(CheckpointError, match=message) as refused:
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert str(path) in str(refused.value)
    assert '\n' not in str(refused.value)
    assert [file.name for file in tmp_path.rglob('*')] == ['sub', 'odd.pth']


# Pickles of a few bytes that unfold to more than any machine holds, or nest too deep
# -----------------------------------------------------------------------------------

PROTO, GLOBAL_SET = b'\x80\x02', b'cbuiltins\nset\n'
# Memo 60 is a list of twice memo 59, which is a list of twice memo 58, ...
LISTS = b']q\0' + b''.join(
    b']q%c(h%ch%ce' % (number, number - 1, number - 1) for number in range(1, 61)
)
TUPLES = b')q\0' + b''.join(
    b'h%ch%c\x86q%c' % (number - 1, number - 1, number) for number in range(1, 61)
)
STORAGE = b'(X\x07\0\0\0storagectorch\nFloatStorage\nh<X\x03\0\0\0cpuK\x01tQ'
UNFOLDING = {
    'lists as a function': LISTS + b')R.',
    'lists as a class': LISTS + b')\x81.',
    'lists given a state': LISTS + b'}b.',
    'lists as a state': b'ccollections\nOrderedDict\n)R' + LISTS + b'b.',
    'lists as data': b'}X\x04\0\0\0meta' + LISTS + b's.',
    'lists as the name of a storage': LISTS + STORAGE + b'.',
    'lists as a kind of numbers': b'cnumpy\ndtype\n' + LISTS + b'\x85R.',
    'lists as a device': b'ctorch\ndevice\n' + LISTS + b'\x85R.',
    'lists as a shape': b'ctorch\nSize\n' + LISTS + b'\x85R.',
    'lists as numbers': b'cnumpy.core.multiarray\nscalar\n' + LISTS + LISTS + b'\x86R.',
    'tuples as a key': TUPLES + b'}h<Ns.',
    'tuples as keys': TUPLES + b'}(h<Nu.',
    'tuples in a set': TUPLES + GLOBAL_SET + b']h<a\x85R.',
    'tuples in an ordered dict': TUPLES + b'ccollections\nOrderedDict\n]h<N\x86a\x85R.',
    'tuples without the memo': b')' + b'2\x86' * 60 + b'}q\0' + b'0h\0N' + b's.',
    'tuples as the state of an array': b'cnumpy.core.multiarray\n_reconstruct\n)R' + TUPLES + b'b.',
    '1 000 000 levels as a key': b'})' + b'\x85' * 1_000_000 + b'Ns.',
    '1 000 000 levels as keys': b'}()' + b'\x85' * 1_000_000 + b'Nu.',
    '1 000 000 levels in a set': GLOBAL_SET + b'])' + b'\x85' * 1_000_000 + b'a\x85R.',
    '100 000 levels': b'}X\x04\0\0\0meta' + b']' * 100_000 + b'a' * 99_999 + b's.',
}


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('data', UNFOLDING.values(), ids=list(UNFOLDING))
def test_what_unfolds_without_end_is_refused_at_once(data, zipped, tmp_path):
    path = tmp_path / 'nested.pth'
    if zipped:
        write_zip(path, PROTO + data, [bytes(4)])
    else:
        buffer = io.BytesIO()
        torch.save({}, buffer, _use_new_zipfile_serialization=False)
        empty = pickle.dumps({}, 2) + pickle.dumps([], 2)
        assert buffer.getvalue().endswith(empty)
        path.write_bytes(buffer.getvalue()[: -len(empty)] + PROTO + data + pickle.dumps([], 2))
    with pytest.raises(CheckpointError, match=r'repeats more|levels|tuple for|KeyError') as refused:
        load_checkpoint_data(path)
    assert len(str(refused.value)) < 700


def test_what_is_used_twice_is_a_copy_of_its_own(tmp_path):
    betas, names, weights = (0.9, 0.999), ['a', ('b', {'c': 1})], torch.ones(3)
    groups = [dict(betas=betas, names=names, weights=weights) for _ in range(3)]
    torch.save(dict(groups=groups, again=groups), tmp_path / 'shared.pth')
    loaded = load_checkpoint_data(tmp_path / 'shared.pth')
    assert_same(loaded, dict(groups=groups, again=groups))
    loaded['groups'][0]['names'].append(1)
    assert loaded['again'][0]['names'] == loaded['groups'][1]['names'] == names
    assert loaded['again'][2]['weights'].data_ptr() == loaded['groups'][0]['weights'].data_ptr()


def test_lists_filled_after_their_use_do_not_unfold(tmp_path):
    # Memo 60 gets memo 59 twice, which is empty and then gets memo 58 twice, ...
    data = b''.join(b']q%c0' % number for number in range(61)) + b''.join(
        b'h%c(h%ch%ce0' % (number, number - 1, number - 1) for number in range(60, 0, -1)
    )
    write_zip(tmp_path / 'late.pth', PROTO + data + b'}X\x04\0\0\0metah<s.')
    assert len(repr(load_checkpoint_data(tmp_path / 'late.pth'))) < 100


def test_messages_hold_no_control_characters(tmp_path):
    path = tmp_path / 'odd\x1b[2J\u2028name.pth'
    name = 'a\x1b]0;owned\x07\u2028\u202e\x85' + 10_000 * 'b'
    write_zip(path, PROTO + f'c{name}\nexec\n.'.encode())
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint_data(path)
    message = str(refused.value)
    assert message.isprintable()
    assert (
        r'odd\x1b[2J\u2028name.pth wants to run or make a\x1b]0;owned\x07\u2028\u202e\x85b'
        in message
    )
    assert len(message) < 700 + len(str(path))


def test_every_cut_of_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / 'cut.pth'
    for data in (whole(path), pickle.dumps(spoiled(meta={}), 2)):
        for end in range(0, len(data), 331):
            path.write_bytes(data[:end])
            with pytest.raises(CheckpointError):
                load_checkpoint_data(path)


# Configs in a checkpoint, which mmengine runs, and what a config makes mmseg load
# -------------------------------------------------------------------------------

INFO = ('message_hub', 'runtime_info', 'cfg')
CONFIGS = {
    'program in the message hub': (INFO, 'import os\n{touch}\n', 'a program'),
    'program in the meta': (('meta', 'cfg'), '{touch}\n', 'a program'),
    'call in a list': (INFO, 'model = dict(type="ASPPHead", a=[{touch}])\n', 'a program'),
    'import by a function': (INFO, 'a = __import__("{module}")\n', 'a program'),
    'base': (INFO, '_base_ = "{folder}/{module}.py"\n', 'a program'),
    'lazy imports': (INFO, 'from mmengine.config import read_base\n{touch}\n', 'a program'),
    'type of the system': (
        INFO,
        'model = dict(type="os.system", command="touch {marker}")\n',
        "names type='os.system'",
    ),
    'type in a list': (
        INFO,
        'model = dict(type="FCNHead", in_channels=4, channels=4, num_classes=2, loss_decode=['
        'dict(type="os.system", command="touch {marker}")])\n',
        "names type='os.system'",
    ),
    'type of a scope that is imported': (
        INFO,
        'model = dict(type="{module}.Net")\n',
        r"names type='.*\.Net'",
    ),
    'type that is a module': (INFO, 'model = dict(type="{module}")\n', "names type='evil"),
    'type that loads a pickle': (
        INFO,
        'model = dict(type="mmengine.load", file="{folder}/planted.pkl")\n',
        r"names type='mmengine\.load'",
    ),
    'scope that is imported': (
        INFO,
        'model = dict(type="EncoderDecoder", _scope_="{module}")\n',
        "names _scope_='evil",
    ),
    'import of a module': (
        INFO,
        'custom_imports = dict(imports=["{module}"])\nmodel = dict(type="ASPPModule")\n',
        None,
    ),
    'weights of classes in a pickle': (
        INFO,
        'model = dict(type="CrossEntropyLoss", class_weight="{folder}/planted.pkl")\n',
        'class_weight=.*planted.pkl',
    ),
}


@pytest.fixture
def evil(tmp_path, monkeypatch, request):
    """What a config may name: a module, and a pickle, that write a file when they are read."""
    monkeypatch.syspath_prepend(tmp_path)
    marker, module = tmp_path / 'marker', f'evil_{abs(hash(request.node.name))}'
    (tmp_path / f'{module}.py').write_text(touch(marker) + '\n')
    planted = Planted(os.system, f'touch {marker}')
    (tmp_path / 'planted.pkl').write_bytes(pickle.dumps(planted))
    yield dict(folder=tmp_path, marker=marker, module=module, touch=touch(marker))
    sys.modules.pop(module, None)


@pytest.mark.parametrize(('place', 'text', 'message'), CONFIGS.values(), ids=list(CONFIGS))
def test_a_config_in_a_checkpoint_runs_nothing(place, text, message, evil, monkeypatch):
    path = evil['folder'] / 'planted.pth'
    checkpoint = inner = dict(state_dict={}, meta={})
    for key in place[:-1]:
        inner = inner.setdefault(key, {})
    inner[place[-1]] = text.format(**evil)
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError if message else Exception, match=message):
        MMSegInferencer(None, str(path), device='cpu')
    assert not evil['marker'].exists()
    if place == INFO:  # as a resumed run, and whoever has the text
        monkeypatch.setenv(TRUST_VARIABLE, '1')
        with contextlib.suppress(Exception, SystemExit):
            MMSegInferencer(None, str(path), device='cpu')
        assert evil['marker'].exists()


def test_a_resumed_run_compares_configs_without_importing(evil, caplog):
    """The run's own config may import the user's modules, so this one is no reason to refuse."""
    text = 'custom_imports = dict(imports=["{module}"])\nmodel = dict(type="{module}.Net")\n'
    path = evil['folder'] / 'own.pth'
    torch.save(spoiled(meta=dict(cfg=text.format(**evil))), path)
    checkpoint = CheckpointLoader.load_checkpoint(str(path))
    parts = dict(model=nn.Identity(), optim_wrapper=None, param_schedulers=None)
    runner = SimpleNamespace(
        **parts,
        _resume=True,
        _load_from=str(path),
        cfg=Config(dict(model=dict(type='Y'))),
        logger=logging.getLogger('resumed'),
    )
    AtomicCheckpointHook().after_load_checkpoint(runner, checkpoint)
    assert f"model.type: '{evil['module']}.Net' in the checkpoint, 'Y' now" in caplog.text
    assert not evil['marker'].exists()


@pytest.mark.parametrize('suffix', ['pkl', 'pickle', 'yaml', 'yml'])
def test_weights_of_classes_are_not_read_from_what_runs_code(suffix, tmp_path, monkeypatch):
    path, marker = tmp_path / f'weights.{suffix}', tmp_path / 'marker'
    path.write_bytes(
        pickle.dumps(Planted(os.system, f'touch {marker}'))
        if suffix.startswith('p')
        else f'!!python/object/apply:os.system ["touch {marker}"]'.encode()
    )
    config = dict(type='CrossEntropyLoss', class_weight=str(path))
    with pytest.raises(CheckpointError, match=f'weights.{suffix}.* .npy or .json file'):
        MODELS.build(config)
    assert not marker.exists()
    monkeypatch.setenv(TRUST_VARIABLE, '1')
    MODELS.build(config)
    assert marker.exists()


def test_weights_of_classes_are_read_from_numbers(tmp_path):
    (tmp_path / 'weights.json').write_text('[1, 2.5]')
    np.save(tmp_path / 'weights.npy', np.array([1, 2.5]))
    for weights in (str(tmp_path / 'weights.json'), str(tmp_path / 'weights.npy'), [1, 2.5]):
        loss = MODELS.build(dict(type='CrossEntropyLoss', class_weight=weights))
        assert list(loss.class_weight) == [1, 2.5]


# What is allowed
# ---------------


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
        assert_same(getattr(a, '_metadata', None), getattr(b, '_metadata', None))
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, (torch.Tensor, nn.Parameter)):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert a.requires_grad == b.requires_grad
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, HistoryBuffer):
        state, other = dict(a.__dict__), dict(b.__dict__)
        for each in (state, other):
            each.pop('statistics_methods', None)
        assert_same(state, other)
        assert [a.statistics(name) for name in ('min', 'max', 'mean', 'current')] == [
            b.statistics(name) for name in ('min', 'max', 'mean', 'current')
        ]
    else:
        assert a == b


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Two iterations of training: the folder, and the words of the command line."""
    folder = tmp_path_factory.mktemp('trained')
    data = folder / 'data'
    subprocess.run(
        [sys.executable, ROOT / 'tools/dataset_converters/make_mini_dataset.py',
         *('--layout', 'camvid', '--out', data, '--train', '2', '--val', '1', '--size', '64x64')],
        check=True, capture_output=True,
    )  # fmt: skip
    options = [
        *(f'{split}_dataloader.dataset.data_root={data}' for split in ('train', 'val', 'test')),
        *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')),
        *(f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')),
        'train_dataloader.batch_size=2', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
        'default_hooks.logger.interval=1', 'param_scheduler.0.end=2',
        'custom_hooks.0.type=EMAHook',
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/train.py', CONFIG, '--work-dir', folder / 'work',
         '--cfg-options', *options], check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / 'work', options


def test_what_a_training_writes_loads_unchanged(trained):
    files = sorted(trained[0].glob('*.pth'))
    assert len(files) == 2
    for file in files:
        loaded = CheckpointLoader.load_checkpoint(str(file), map_location='cpu')
        assert {'meta', 'state_dict', 'message_hub', 'ema_state_dict'} <= set(loaded)
        assert 'train/loss' in loaded['message_hub']['log_scalars']
        assert_same(loaded, torch.load(file, map_location='cpu', weights_only=False))
    assert {'optimizer', 'param_schedulers'} <= set(loaded)


def test_the_inferencer_takes_what_a_training_writes_without_a_config(trained):
    weights = trained[0] / 'iter_2.pth'
    inferencer = MMSegInferencer(None, str(weights), device='cpu')
    assert type(inferencer.model).__name__ == 'CrossCoopEncoderDecoder'
    assert inferencer.cfg.custom_imports.imports == ['mmseg_coop']
    prediction = inferencer(np.zeros((64, 48, 3), np.uint8))['predictions']
    assert np.asarray(prediction).shape[:1] == (64,)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.filterwarnings('ignore:.*TypedStorage')
def test_other_data_loads_unchanged(zipped, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    data = dict(
        parameter=nn.Parameter(torch.rand(2)),
        half=torch.ones(2, dtype=torch.bfloat16),
        empty=torch.empty(0, 3),
        number=torch.tensor(3),
        view=base[1:, ::2].T,
        base=base,
        bits=torch.tensor([True]),
        dtype=torch.float16,
        device=torch.device('cpu'),
        size=torch.Size([2, 3]),
        array=np.arange(6, dtype=np.uint8).reshape(2, 3),
        fortran=np.asfortranarray(np.ones((2, 3), np.float32)),
        numbers=[np.float32(1.5), np.int64(-2), np.bool_(True), 10**30, -1.5, None],
        bytes=b'\xff\x00',
        set={1, 2},
        text='Stra\u00dfe',
    )
    path = tmp_path / 'data.pth'
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint_data(path, 'cpu')
    assert_same(loaded, data)
    # Tensors that shared their memory still do, and an array can be written to.
    assert loaded['view'].data_ptr() == loaded['base'][1:].data_ptr()
    loaded['array'][0, 0] = 7


def test_methods_in_a_buffer_do_not_become_those_of_the_class(tmp_path):
    buffer = HistoryBuffer([1.0], [1])
    state = dict(buffer.__getstate__(), statistics_methods=dict(mean=dict))
    path = tmp_path / 'buffer.pth'
    # Pickled by hand: the class would write its own methods.
    data = pickle.dumps(state, 2)[2:-1].replace(
        b'c__builtin__\ndict\n', b'ccollections\nOrderedDict\n'
    )
    head = b'\x80\x02}X\x01\x00\x00\x00bcmmengine.logging.history_buffer\nHistoryBuffer\n)\x81'
    write_zip(path, head + data + b'bs.')
    loaded = load_checkpoint_data(path)['b']
    assert HistoryBuffer._statistics_methods['mean'] is HistoryBuffer.mean
    assert loaded.statistics('mean') == 1


def test_foreign_keys_and_wrong_shapes_leave_the_model_as_it_was(tmp_path, caplog):
    path = tmp_path / 'other.pth'
    weights = dict(weight=torch.ones(5, 2), other=torch.ones(1), bias='text')
    torch.save(dict(state_dict=weights), path)
    model = nn.Linear(2, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_checkpoint(model, str(path), map_location='cpu')
    assert_same(dict(model.state_dict()), before)


# Every way in
# ------------


@pytest.mark.parametrize('scheme', ['https://example.invalid/', 'torchvision://', 'mmcls://'])
def test_downloaded_files_are_read_as_data(scheme, tmp_path, monkeypatch):
    marker = tmp_path / 'marker'
    name = 'resnet18'
    for models in ('get_torchvision_models', 'get_mmcls_models'):
        monkeypatch.setattr(
            checkpoint_module, models, lambda: {name: f'https://example.invalid/{name}.pth'}
        )
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cached = tmp_path / 'hub/checkpoints' / f'{name}.pth'
    cached.parent.mkdir(parents=True)
    CODE['in meta'][0](cached, marker)
    url = scheme + name + ('.pth' if scheme.startswith('https') else '')
    with pytest.raises(CheckpointError, match=SYSTEM) as refused:
        CheckpointLoader.load_checkpoint(url, map_location='cpu')
    assert str(cached) in str(refused.value)
    assert not marker.exists()


def test_a_scheme_registered_later_is_guarded(tmp_path, monkeypatch):
    path, marker = tmp_path / 'planted.pth', tmp_path / 'marker'
    CODE['in meta'][0](path, marker)
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes)

    @CheckpointLoader.register_scheme('later://')
    def load_later(filename, map_location=None):
        return torch.load(filename.removeprefix('later://'), map_location, weights_only=False)

    with pytest.raises(CheckpointError, match=SYSTEM):
        CheckpointLoader.load_checkpoint(f'later://{path}')
    assert not marker.exists()


def test_loaders_called_by_their_name_are_guarded(tmp_path):
    path, marker = tmp_path / 'planted.pth', tmp_path / 'marker'
    CODE['in meta'][0](path, marker)
    with pytest.raises(CheckpointError, match=SYSTEM):
        checkpoint_module.load_from_local(str(path), 'cpu')
    assert not marker.exists()


def test_torch_load_is_left_alone_afterwards(tmp_path):
    before = torch.load
    torch.save(dict(a=1), tmp_path / 'a.pth')
    CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))
    assert torch.load is before
    with pytest.raises(FileNotFoundError):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'gone.pth'))
    assert torch.load is before


@pytest.mark.parametrize('tool', ['test.py', 'train.py'])
def test_the_tools_refuse_in_one_line(tool, trained, tmp_path):
    path, marker = tmp_path / 'planted.pth', tmp_path / 'marker'
    CODE['in optimizer state'][0](path, marker)
    words = [path] if tool == 'test.py' else ['--resume', path]
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / tool, CONFIG, *words, '--work-dir', tmp_path / 'work',
         '--cfg-options', *trained[1]], check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f'error: {path} wants to run or make {SYSTEM}')
    assert TRUST_VARIABLE in last
    assert not marker.exists()


def test_pretrained_weights_are_read_as_data(tmp_path):
    path, marker = tmp_path / 'planted.pth', tmp_path / 'marker'
    CODE['in meta'][0](path, marker)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = MODELS.build(dict(type='MobileNetV2', widen_factor=0.25, init_cfg=init_cfg))
    with pytest.raises(CheckpointError, match=SYSTEM):
        model.init_weights()
    assert not marker.exists()


def test_custom_imports_alone_guards_mmseg(tmp_path):
    path, marker = tmp_path / 'planted.pth', tmp_path / 'marker'
    CODE['in meta'][0](path, marker)
    code = f"""
from mmengine.config import Config
from mmseg.apis import init_model
config = Config.fromfile({str(CONFIG)!r})
init_model(config, {str(path)!r}, device='cpu')
"""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, '-c', code], check=False, capture_output=True, text=True, env=environment
    )
    assert f'CheckpointError: {path} wants to run or make {SYSTEM}' in done.stderr
    assert not marker.exists()
