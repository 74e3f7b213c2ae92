from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict

import mmengine.runner.checkpoint as checkpoint_module
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner
from mmseg.apis import MMSegInferencer
from mmseg.registry import MODELS
from torch import nn

import mmseg_coop  # noqa: F401  # all that a config's custom_imports does
from mmseg_coop.engine.safe_checkpoint import TRUST_VARIABLE, load_checkpoint_data
from mmseg_coop.errors import CheckpointError
from tests.conftest import MINI, ROOT
from tests.engine.runs import assert_same, logged, newest, train

SYSTEM = f'{os.system.__module__}.system'


class Planted:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def touch(marker):
    return f'open({str(marker)!r}, "w").close()'


def system(marker):
    return Planted(os.system, f'touch {marker}')


def saved(path, *, zipped=True, **parts):
    """Save a checkpoint like that of a training, with some parts replaced."""
    whole = dict(
        meta=dict(iter=2, epoch=0, seed=1, cfg='model = dict(type="X")\n'),
        state_dict=OrderedDict(weight=torch.ones(3)),
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
        optimizer=dict(state={0: dict(momentum_buffer=torch.zeros(3))}, param_groups=[]),
    )
    torch.save({**whole, **parts}, path, _use_new_zipfile_serialization=zipped)
    return path.read_bytes()


def write_zip(path, data, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('archive/data.pkl', data)
        archive.writestr('archive/version', '3\n')
        for key, content in enumerate(storages):
            archive.writestr(f'archive/data/{key}', content)


def write_legacy(path, data, keys=()):
    """Write the format of torch before 1.6, of which an object's pickle is the fourth part."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    start = buffer.getvalue().removesuffix(pickle.dumps({}, 2) + pickle.dumps([], 2))
    path.write_bytes(start + data + pickle.dumps(keys, 2))


def unzipped(content):
    """The pickle of a checkpoint and its two storages."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        folder = archive.namelist()[0].partition('/')[0]
        return [archive.read(f'{folder}/{name}') for name in ('data.pkl', 'data/0', 'data/1')]


# Files that run something when a plain pickle reads them, each with the function it names
# ---------------------------------------------------------------------------------------


def nested_load(path, marker):
    torch.save(system(marker), inner := f'{path}.inner')
    return Planted(functools.partial(torch.load, weights_only=False), inner)


def numpy_load(path, marker):
    np.save(inner := f'{path}.npy', np.array([system(marker)], object), allow_pickle=True)
    return Planted(np.load, inner, None, True)


def buffer_with_code(path, marker):
    (buffer := HistoryBuffer([1.0], [1])).__dict__['planted'] = system(marker)
    return buffer


IMPORT = Planted(getattr, Planted(importlib.import_module, 'os'), 'system')
GLOBALS = Planted(getattr, HistoryBuffer.__init__, '__globals__')
# fmt: off
#: What stands for the weights in a checkpoint, and the function that is named.
OBJECTS = {
    'function': (lambda path, marker: system(marker), SYSTEM),
    'nested': (lambda path, marker: dict(state={0: dict(step=[(system(marker),)])}), SYSTEM),
    'key': (lambda path, marker: OrderedDict([(system(marker), 1)]), SYSTEM),
    'eval': (lambda path, marker: Planted(eval, touch(marker)), 'builtins.eval'),
    'exec': (lambda path, marker: Planted(exec, touch(marker)), 'builtins.exec'),
    'subprocess': (lambda path, marker: Planted(subprocess.call, ['touch', str(marker)]), 'subpr'),
    'getattr chain': (lambda path, marker: Planted(list, Planted(map, IMPORT, [f'touch {marker}'])),
                      'importlib.import_module'),
    'getattr of an allowed class': (lambda path, marker: Planted(eval, touch(marker), GLOBALS),
                                    'builtins.getattr'),
    'partial': (nested_load, 'functools.partial'),
    'numpy.load': (numpy_load, 'numpy.*load'),
    'in a buffer': (buffer_with_code, SYSTEM),
}
# fmt: on


def legacy_tar(path, marker):
    parts = dict(
        storages=pickle.dumps(0, 2) + pickle.dumps([], 2),
        tensors=pickle.dumps(0, 2),
        pickle=pickle.dumps(system(marker), 2),
    )
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as archive:
        for name, content in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


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


def script_program(path, marker):
    torch.jit.save(torch.jit.script(Program(marker)), str(path))
    marker.unlink(missing_ok=True)


def two_directories(path, marker):
    """Python's zipfile reads the directory before the end, torch the one whose offset is stated."""
    script_program(path, marker)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr(f'{archive.namelist()[0].partition("/")[0]}/padding', b'')
        archive.filelist[-1].comment = b'x' * 500
    data = path.read_bytes()
    end = data[-22:]
    size = struct.unpack('<I', end[12:16])[0]
    plain = io.BytesIO()
    write_zip(plain, pickle.dumps({}, 2))
    listed = struct.unpack('<I', plain.getvalue()[-10:-6])[0]
    with zipfile.ZipFile(plain, 'a') as archive:
        archive.filelist[-1].comment = b'x' * (size - listed)
        archive._didModify = True
    start = struct.unpack('<I', plain.getvalue()[-6:-2])[0]
    path.write_bytes(data[:-22] + plain.getvalue()[start:-22] + end)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ['archive/data.pkl', 'archive/version']


def with_object(make, zipped):
    return lambda path, marker: saved(path, zipped=zipped, state_dict=make(path, marker))


# fmt: off
#: Functions that write a whole file.
FILES = {
    'protocol 4': (lambda path, m: write_zip(path, pickle.dumps(dict(a=system(m)), 4)), SYSTEM),
    'INST': (lambda path, m: write_zip(path, f'(S{touch(m)!r}\ni__builtin__\nexec\n.'), 'damaged'),
    'OBJ': (lambda path, m: write_zip(path, f'(c__builtin__\nexec\nS{touch(m)!r}\no.'), 'damaged'),
    'legacy magic number': (lambda path, m: path.write_bytes(pickle.dumps(system(m), 2)), SYSTEM),
    'legacy storage keys': (lambda path, m: write_legacy(path, b'}.', system(m)), SYSTEM),
    'legacy tar': (legacy_tar, 'tar format'),
    'TorchScript that runs when loaded': (script_program, 'TorchScript'),
    'two central directories': (two_directories, 'TorchScript'),
    **{f'{name}, {"zip" if zipped else "legacy"}': (with_object(make, zipped), named)
       for name, (make, named) in OBJECTS.items() for zipped in (True, False)},
}
# fmt: on


@pytest.mark.filterwarnings('ignore')  # torch's, about the formats
@pytest.mark.parametrize(('write', 'named'), FILES.values(), ids=list(FILES))
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


@pytest.fixture
def hostile(tmp_path):
    """A checkpoint that runs something, and the file that then exists."""
    path, marker = tmp_path / 'planted.pth', tmp_path / 'marker'
    saved(path, meta=system(marker))
    yield path, marker
    assert not marker.exists()


def test_the_message_names_file_function_and_switch(hostile):
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint_data(hostile[0])
    assert str(refused.value) == (
        f'{hostile[0]} wants to run or make {SYSTEM}: refused, nothing of it ran. Get or write it '
        f'anew, or, if you trust it, set {TRUST_VARIABLE}=1 in the environment.'
    )


def test_the_switch_hands_the_file_to_mmengine(hostile, monkeypatch):
    path, marker = hostile
    monkeypatch.setenv(TRUST_VARIABLE, '0')
    with pytest.raises(CheckpointError):
        CheckpointLoader.load_checkpoint(str(path))
    monkeypatch.setenv(TRUST_VARIABLE, '1')
    assert CheckpointLoader.load_checkpoint(str(path))['meta'] == 0
    marker.unlink()


# Files that are damaged, too large, or dangerous as data
# -------------------------------------------------------


def changed(path, old, new):
    """Save a tensor and change a number of its pickle."""
    data, *storages = unzipped(saved(path, state_dict=OrderedDict(weight=torch.arange(7.0))))
    assert data.count(old) == 1
    write_zip(path, data.replace(old, new), storages)


def number(value):
    return b'J' + struct.pack('<i', value)


def overwritten(path):
    data = bytearray(saved(path))
    at = data.index(b'data.pkl') + 60
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)


def added(path, name):
    saved(path)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr(name, 'x')


def overlapping_parts(path):
    """One stored part, listed by the directory under many names."""
    write_zip(path, b'}.', [bytes(10_000)])
    with zipfile.ZipFile(path, 'a') as archive:
        first = archive.filelist[-1]
        for key in range(1, 50):
            again = zipfile.ZipInfo(f'archive/data/{key}')
            again.file_size, again.compress_size, again.CRC = 10_000, 10_000, first.CRC
            again.header_offset = first.header_offset
            archive.filelist.append(again)
        archive._didModify = True


def legacy_storages(path, stated):
    torch.save([torch.zeros(100) for _ in range(9)], path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.count(b'K\x64N') == 9
    path.write_bytes(data.replace(b'K\x64N', b'\x8a\x06' + stated.to_bytes(6, 'little') + b'N'))


def array_of_structures(path):
    """The state makes a dtype of numbers one of objects."""
    kind = pickle.dumps(Planted(np.dtype, 'f8', False, True), 2)[:-1]
    state = pickle.dumps((3, '|', None, ('a',), {'a': (1, 0)}, 8, 1, 0), 2)[2:-1]
    write_zip(path, kind + state + b'b.')


def numpy_pointers(path):
    """A numpy scalar of objects, whose bytes would be taken for an address."""
    saved(path, meta=Planted(np.float64(1).__reduce__()[0], np.dtype('O'), b'A' * 8))


def with_info(**info):
    return lambda path: saved(path, message_hub=dict(runtime_info=info))


def taking(function):
    """A function that goes through a tensor of a gigabyte, whose numbers are all the same one."""
    tensor = torch.zeros(1, dtype=torch.uint8).expand(2**30)
    return lambda path: saved(path, meta=Planted(function, tensor))


# fmt: off
DAMAGED = {
    'empty': (lambda path: path.touch(), 'damaged'),
    'random bytes': (lambda path: path.write_bytes(random.Random(0).randbytes(5000)), 'damaged'),
    'a web page': (lambda path: path.write_text('<!DOCTYPE html><p>not found'), 'damaged'),
    'truncated': (lambda path: path.write_bytes(saved(path)[:-200]), 'damaged'),
    'truncated legacy': (lambda path: path.write_bytes(saved(path, zipped=False)[:-7]), 'damaged'),
    'overwritten with zeros': (overwritten, 'damaged'),
    'path traversal': (lambda path: added(path, 'archive/../../../escaped'), 'damaged'),
    'absolute path': (lambda path: added(path, '/escaped'), 'damaged'),
    'zip bomb of 200 MB': (lambda path: write_zip(path, bytes(2**28), (), 8), 'parts are larger'),
    'compressed storage': (lambda path: write_zip(path, b'}.', [bytes(2**16)], 8), 'parts are'),
    'overlapping parts': (overlapping_parts, 'parts are larger'),
    # The count of numbers of a storage stands at the end of its persistent id.
    'storage beyond the file': (
        lambda path: changed(path, b'K\x07tq', number(2**30) + b'tq'), 'states 1073741824 numbers'),
    'storage of less than nothing': (
        lambda path: changed(path, b'K\x07tq', number(-1) + b'tq'), 'states -1 numbers'),
    'tensor beyond its storage': (
        lambda path: changed(path, b'K\x07\x85', number(2**30) + b'\x85'),
        r'shape \(1073741824,\), larger|not resizable'),
    'negative offset': (
        lambda path: changed(path, b'QK\x00K\x07\x85', b'Q' + number(-16) + b'K\x07\x85'),
        'damaged'),
    'legacy storages of 4 TB': (
        lambda path: legacy_storages(path, 2**40), 'states 1099511627776 numbers'),
    'legacy storages that share the file': (
        lambda path: legacy_storages(path, 1000), 'wrong byte size'),
    'tensor of 4 EB in one number': (
        lambda path: saved(path, meta=torch.ones(1).expand(2**60)), 'larger than its data'),
    'set of a tensor': (taking(set), 'builtins.set'),
    'shape of a tensor': (taking(torch.Size), 'torch.Size'),
    'order of a tensor': (taking(OrderedDict), 'collections.OrderedDict'),
    'buffer of a tensor': (taking(HistoryBuffer), 'HistoryBuffer'),
    'bytes of a length alone': (
        lambda path: write_zip(path, b'\x80\x05\x96' + struct.pack('<Q', 2**40)), 'KeyError'),
    'TorchScript': (
        lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path)), 'TorchScript'),
    'numpy objects': (numpy_pointers, 'numpy.dtype'),
    'array of structures': (array_of_structures, 'numpy.dtype'),
    'a list': (lambda path: torch.save([torch.ones(1)], path), 'holds a list'),
    'a whole module': (lambda path: torch.save(nn.Linear(1, 1), path), 'torch.nn.*Linear'),
    'a folder to delete as the best': (
        with_info(best_ckpt='/home/user'), 'wants /home/user deleted'),
    'a folder to delete as the best by loss': (
        with_info(best_ckpt_loss='/best_of/user'), 'wants /best_of/user deleted'),
    'files to delete as the oldest': (
        with_info(keep_ckpt_ids=['/../x']), r"wants \['/../x'\] deleted"),
}
# fmt: on


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

# Memo 60 is a list of twice memo 59, which is a list of twice memo 58, ...
LISTS = b']q\x000' + b''.join(b']q%c(h%ch%ce0' % (n, n - 1, n - 1) for n in range(1, 61)) + b'h\x3c'
TUPLES = b')q\x000' + b''.join(b'h%ch%c\x86q%c0' % (n - 1, n - 1, n) for n in range(1, 61)) + b'h<'
DICTS = (
    b'}q\x000' + b''.join(b'}q%c(K\0h%cK\1h%cu0' % (n, n - 1, n - 1) for n in range(1, 61)) + b'h<'
)
#: The same, each filled after it was put into the next one.
LATE = (
    b''.join(b']q%c0' % n for n in range(61))
    + b''.join(b'h%c(h%ch%ce0' % (n, n - 1, n - 1) for n in range(60, 0, -1))
    + b'h<'
)
SET, ORDERED = b'cbuiltins\nset\n', b'ccollections\nOrderedDict\n'
# fmt: off
#: Where they stand: what comes before, and after.
USES = {
    'the whole': (b'', b'.'),
    'data': (b'}X\x04\0\0\0meta', b's.'),
    'a function': (b'', b')R.'),
    'a class': (b'', b')\x81.'),
    'given a state': (b'', b'}b.'),
    'a state': (ORDERED + b')R', b'b.'),
    'a key': (b'}', b'Ns.'),
    'keys': (b'}(', b'Nu.'),
    'an index': (b']', b'Ns.'),
    'a member': (SET + b'](', b'e\x85R.'),
    'a key in order': (ORDERED + b'](', b'N\x86e\x85R.'),
    'an argument': (b'cposix\nsystem\n', b'\x85R.'),
    'a kind of numbers': (b'cnumpy\ndtype\n', b'\x85R.'),
    'a device': (b'ctorch\ndevice\n', b'\x85R.'),
    'a shape': (b'ctorch\nSize\n', b'\x85R.'),
    'a number': (b'cnumpy.core.multiarray\nscalar\n', b'N\x86R.'),
    'the state of an array': (b'cnumpy.core.multiarray\n_reconstruct\n)R', b'b.'),
    'a storage': (b'', b'Q.'),
    'the name of a storage': (
        b'(X\x07\0\0\0storagectorch\nFloatStorage\n', b'X\x03\0\0\0cpuK\x01tQ.'),
}
UNFOLDING = {
    **{f'lists as {use}': LISTS.join(around) for use, around in USES.items()},
    **{f'tuples as {use}': TUPLES.join(around) for use, around in USES.items()},
    'dicts': DICTS + b'.',
    'lists filled after their use': LATE + b'.',
    'tuples without the memo': b'})' + b'2\x86' * 60 + b'Ns.',
    '300 000 levels as a key': b'})' + b'\x85' * 300_000 + b'Ns.',
    '100 000 levels in a set': SET + b'])' + b'\x85' * 100_000 + b'a\x85R.',
    '100 000 lists': b'}X\x04\0\0\0meta' + b']' * 100_000 + b'a' * 99_999 + b's.',
    '10 000 dicts': b'}K\0' * 10_000 + b'N' + b's' * 10_000 + b'.',
}
# fmt: on


@pytest.mark.parametrize('write', [write_zip, write_legacy])
@pytest.mark.parametrize('data', UNFOLDING.values(), ids=list(UNFOLDING))
def test_what_unfolds_without_end_is_refused_at_once(data, write, tmp_path):
    path = tmp_path / 'nested.pth'
    write(path, b'\x80\x02' + data)
    with pytest.raises(
        CheckpointError, match=r'nests deeper|attribute|indices|KeyError'
    ) as refused:
        load_checkpoint_data(path)
    assert len(str(refused.value)) < 700


def test_what_is_used_again_is_whole(tmp_path):
    names, weights = ['a', ('b', {'c': 1}), ('d', 1)], torch.ones(3)
    groups = [dict(betas=(0.9, 0.999), names=names, weights=weights) for _ in range(3)]
    data = dict(groups=groups, again=groups, many=[names] * 5000, keys={('a', 1): 2})
    data['numbers'] = [np.float32(number) for number in range(10_000)]
    torch.save(data, tmp_path / 'shared.pth')
    loaded = load_checkpoint_data(tmp_path / 'shared.pth')
    assert_same(loaded, data)
    pointers = {group['weights'].data_ptr() for key in ('groups', 'again') for group in loaded[key]}
    assert len(pointers) == 1


def test_messages_hold_no_control_characters(tmp_path):
    path = tmp_path / 'odd\x1b[2J\u2028name.pth'
    name = 'a\x1b]0;owned\x07\u2028\u202e\x85' + 10_000 * 'b'
    write_zip(path, b'\x80\x02' + f'c{name}\nexec\n.'.encode())
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
    for data in (saved(path), saved(path, zipped=False)):
        for end in range(0, len(data), 331):
            path.write_bytes(data[:end])
            with pytest.raises(CheckpointError):
                load_checkpoint_data(path)


# Configs in a checkpoint, which mmengine runs, and what a config makes mmseg load
# -------------------------------------------------------------------------------

INFO, META = ('message_hub', 'runtime_info'), ('meta',)
EVIL = 'dict(type="os.system", command="touch {marker}")'
HEAD = 'model = dict(type="FCNHead", in_channels=4, channels=4, num_classes=2, loss_decode=[{}])'
# fmt: off
#: Text, and what the refusal says of it; what is left out runs, or imports, where it is trusted.
CONFIGS = {
    'a program': ('import os\n{touch}\n', 'a program'),
    'a call in a list': ('model = dict(type="ASPPHead", a=[{touch}])\n', 'a program'),
    'an import by a function': ('a = __import__("{module}")\n', 'a program'),
    'a base': ('_base_ = "{folder}/{module}.py"\n', 'a program'),
    'lazy imports': ('from mmengine.config import read_base\n{touch}\n', 'a program'),
    'a type of the system': (f'model = {EVIL}\n', "names type='os.system'"),
    'a type in a list': (HEAD.format(EVIL), "names type='os.system'"),
    'a type of a scope that is imported': ('model = dict(type="{module}.Net")', r"='evil\w*\.Net'"),
    'a type that is a module': ('model = dict(type="{module}")\n', "names type='evil"),
    'a type that loads a pickle': (
        'model = dict(type="mmengine.load", file="{folder}/planted.pkl")', r"='mmengine\.load'"),
    'a scope that is imported': (
        'model = dict(type="EncoderDecoder", _scope_="{module}")\n', "names _scope_='evil"),
    'an import of a module': (
        'custom_imports = dict(imports=["{module}"])\nmodel = dict(type="FCNHead")', 'in_channels'),
    'weights of classes in a pickle': (
        'model = dict(type="CrossEntropyLoss", class_weight="{folder}/planted.pkl")\n',
        'class_weight=.*planted.pkl'),
    'another dict (harmless)': ('dict = eval\na = dict("1")', 'a program'),
    'a placeholder (harmless)': ("a = {{{{'$NONE:print(1)'}}}}", 'a program'),
    'a megabyte (harmless)': (f'a = {[0] * 400_000}', 'characters, more than'),
}
# fmt: on


@pytest.fixture
def evil(tmp_path, monkeypatch, request):
    """What a config may name: a module, and a pickle, that write a file when they are read."""
    monkeypatch.syspath_prepend(tmp_path)
    marker, module = tmp_path / 'marker', f'evil_{abs(hash(request.node.name))}'
    (tmp_path / f'{module}.py').write_text(touch(marker) + '\n')
    (tmp_path / 'planted.pkl').write_bytes(pickle.dumps(system(marker)))
    yield dict(folder=tmp_path, marker=marker, module=module, touch=touch(marker))
    sys.modules.pop(module, None)


@pytest.mark.parametrize('place', [INFO, META], ids=str)
@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_in_a_checkpoint_runs_nothing(name, place, evil, monkeypatch):
    text, message = CONFIGS[name]
    inner = dict(cfg=text.format(**evil))
    for key in reversed(place):
        inner = {key: inner}
    path = evil['folder'] / 'planted.pth'
    torch.save(dict(state_dict={}, **inner), path)
    expected = TypeError if message == 'in_channels' else CheckpointError
    with pytest.raises(expected, match=message):
        MMSegInferencer(None, str(path), device='cpu')
    assert not evil['marker'].exists()
    if place is INFO and 'harmless' not in name:
        monkeypatch.setenv(TRUST_VARIABLE, '1')
        with contextlib.suppress(Exception, SystemExit):
            MMSegInferencer(None, str(path), device='cpu')
        assert evil['marker'].exists()


def test_a_resumed_run_compares_configs_without_importing(evil, tmp_path):
    """The run's own config may import the user's modules, so this one is no reason to refuse."""
    text = 'custom_imports = dict(imports=["{module}"])\nmodel = dict(type="{module}.Net")\n'
    train(tmp_path / 'old', max_iters=1)
    checkpoint = newest(tmp_path / 'old')
    checkpoint['meta']['cfg'] = text.format(**evil)
    torch.save(checkpoint, tmp_path / 'own.pth')
    train(tmp_path / 'new', max_iters=2, load_from=str(tmp_path / 'own.pth'))
    said = f"model.type: '{evil['module']}.Net' then, '(nothing)' now"
    assert said in logged(tmp_path / 'new')
    assert not evil['marker'].exists()


@pytest.mark.parametrize('suffix', ['pkl', 'pickle', 'yaml', 'yml'])
def test_weights_of_classes_are_not_read_from_what_runs_code(suffix, hostile, monkeypatch):
    marker = hostile[1]
    path = marker.with_name(f'weights.{suffix}')
    path.write_bytes(
        pickle.dumps(system(marker))
        if suffix.startswith('p')
        else f'!!python/object/apply:os.system ["touch {marker}"]'.encode()
    )
    config = dict(type='CrossEntropyLoss', class_weight=str(path))
    with pytest.raises(CheckpointError, match=f'weights.{suffix}.* .npy or .json file'):
        MODELS.build(config)
    assert not marker.exists()
    monkeypatch.setenv(TRUST_VARIABLE, '1')
    MODELS.build(config)
    marker.unlink()


def test_weights_of_classes_are_read_from_numbers(tmp_path):
    (tmp_path / 'weights.json').write_text('[1, 2.5]')
    np.save(tmp_path / 'weights.npy', np.array([1, 2.5]))
    for weights in (str(tmp_path / 'weights.json'), str(tmp_path / 'weights.npy'), [1, 2.5]):
        loss = MODELS.build(dict(type='CrossEntropyLoss', class_weight=weights))
        assert list(loss.class_weight) == [1, 2.5]


# What is allowed
# ---------------


@pytest.fixture(scope='module')
def trained(small_cfg, tmp_path_factory):
    """The folder of a training with a moving average, an evaluation and a best checkpoint."""
    folder = tmp_path_factory.mktemp('trained') / 'run'
    options = {'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2}
    cfg = small_cfg(folder, **options, **{'custom_hooks.0.type': 'EMAHook'})
    Runner.from_cfg(cfg).train()
    return folder


def test_what_a_training_writes_loads_unchanged(trained):
    files = sorted(trained.glob('*.pth'))
    assert len(files) == 2
    for file in files:
        loaded = CheckpointLoader.load_checkpoint(str(file), map_location='cpu')
        assert {'meta', 'state_dict', 'message_hub', 'ema_state_dict'} <= set(loaded)
        assert 'train/loss' in loaded['message_hub']['log_scalars']
        assert_same(loaded, torch.load(file, map_location='cpu', weights_only=False))
    assert {'optimizer', 'param_schedulers'} <= set(loaded)


def test_the_inferencer_takes_what_a_training_writes_without_a_config(trained):
    inferencer = MMSegInferencer(None, str(trained / 'iter_2.pth'), device='cpu')
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
    buffer, methods = HistoryBuffer([1.0, 2.0], [1, 1]), HistoryBuffer._statistics_methods
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods, 'mean', HistoryBuffer.max)
        buffer.mean = 'no method'
        torch.save(dict(b=buffer), tmp_path / 'buffer.pth')
    loaded = load_checkpoint_data(tmp_path / 'buffer.pth')['b']
    assert methods['mean'] is HistoryBuffer.mean
    assert loaded.statistics('mean') == loaded.mean() == 1.5


# Every way in
# ------------


def pretrained(path):
    init_cfg = dict(type='Pretrained', checkpoint=path)
    MODELS.build(dict(type='MobileNetV2', widen_factor=0.25, init_cfg=init_cfg)).init_weights()


@pytest.mark.parametrize(
    'load',
    [
        CheckpointLoader.load_checkpoint,
        lambda path: checkpoint_module.load_from_local(path, 'cpu'),
        pretrained,
        lambda path: CheckpointLoader.load_checkpoint(f'later://{path}'),
        # From the cache of what was downloaded.
        lambda path: CheckpointLoader.load_checkpoint('https://example.invalid/planted.pth'),
        lambda path: CheckpointLoader.load_checkpoint('torchvision://planted'),
        lambda path: CheckpointLoader.load_checkpoint('mmcls://planted'),
    ],
)
def test_every_way_in_is_guarded(load, hostile, tmp_path, monkeypatch):
    for models in ('get_torchvision_models', 'get_mmcls_models'):
        known = dict(planted='https://example.invalid/planted.pth')
        monkeypatch.setattr(checkpoint_module, models, lambda known=known: known)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))

    @CheckpointLoader.register_scheme('later://')  # later than the package was imported
    def load_later(filename, map_location=None):
        return torch.load(filename.removeprefix('later://'), map_location, weights_only=False)

    cached = tmp_path / 'hub/checkpoints/planted.pth'
    cached.parent.mkdir(parents=True)
    cached.write_bytes(hostile[0].read_bytes())
    with pytest.raises(CheckpointError, match=f'planted.pth wants to run or make {SYSTEM}'):
        load(str(hostile[0]))


def test_torch_load_is_left_alone_afterwards(tmp_path):
    before = torch.load
    torch.save(dict(a=1), tmp_path / 'a.pth')
    CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))
    assert torch.load is before
    with pytest.raises(FileNotFoundError):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'gone.pth'))
    assert torch.load is before


@pytest.mark.parametrize('words', [['test.py'], ['train.py', '--resume']], ids=str)
def test_the_tools_refuse_in_one_line(words, hostile, tool, small_words, tmp_path):
    name, *option = words
    done = tool(f'tools/{name}', MINI, *option, hostile[0], '--work-dir', tmp_path, *small_words())
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f'error: {hostile[0]} wants to run or make {SYSTEM}')
    assert TRUST_VARIABLE in last


def test_custom_imports_alone_guards_mmseg(hostile):
    """In a process that has not imported the package."""
    code = f"""
from mmengine.config import Config
from mmseg.apis import init_model
init_model(Config.fromfile({str(MINI)!r}), {str(hostile[0])!r}, device='cpu')
"""
    done = subprocess.run(
        [sys.executable, '-c', code], check=False, capture_output=True, text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert f'CheckpointError: {hostile[0]} wants to run or make {SYSTEM}' in done.stderr
