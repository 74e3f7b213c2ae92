"""The command line: one command for all tools, short errors, nothing slow before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from mmseg_coop.config import load_config
from mmseg_coop.errors import ConfigError
from mmseg_coop.version import __version__
from mmseg_coop_cli import SHORT_NAMES, load_tool, main, program
from tests.conftest import MINI, ROOT

NAME = MINI.stem
TOOLS = {
    path.stem.replace('_', '-'): path
    for folder in ('tools', 'demo')
    for path in (ROOT / folder).rglob('*.py')
    if path.stem[0] != '_' and 'output' not in path.parts  # which the demo has written
}
pytestmark = pytest.mark.skipif(
    not (ROOT / 'mmseg_coop/.mim').is_dir(),
    reason='the checkout is not installed (pip install -e .): its tools and configs have no name',
)


def test_help_lists_every_tool_with_its_first_line(capsys):
    main(['--help'])
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:])
    assert listed.keys() == {*TOOLS, *SHORT_NAMES} - {*SHORT_NAMES.values()}
    assert listed['train'] == 'Train a model.'


def test_version(capsys):
    main(['--version'])
    assert capsys.readouterr().out == f'mmseg-coop {__version__}\n'


@pytest.mark.parametrize(
    ('words', 'last'),
    [
        (['abacus'], "mmseg-coop: 'abacus' is no tool; see mmseg-coop --help"),
        (['trian'], "mmseg-coop: 'trian' is no tool; did you mean train?"),
        (['train'], 'mmseg-coop train: error: the following arguments are required: config'),
        (['train', 'a.py', '--am'], 'mmseg-coop train: error: unrecognized arguments: --am'),
    ],
)
def test_wrong_usage_is_exit_code_2(words, last, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(last)


def test_a_tool_is_found_by_its_path_where_python_has_a_module_of_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, 'test', pytest)
    assert Path(load_tool(TOOLS['test']).__file__).samefile(TOOLS['test'])


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (ConfigError('no such key'), 'error: no such key'),
        (FileNotFoundError('no such file'), 'error: no such file'),
        (KeyboardInterrupt(), 'interrupted'),
        (KeyboardInterrupt('interrupted; go on'), '\ninterrupted; go on'),
    ],
)
def test_what_the_user_can_put_right_is_one_line(error, message):
    def tool():
        raise error

    with pytest.raises(SystemExit) as end:
        program(tool)
    assert end.value.code == message


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(KeyError):
        program(lambda: {}['a'])


@pytest.mark.parametrize('words', [['--help'], ['train', '--help']])
def test_a_closed_pipe_is_no_fault(words):
    """As in `mmseg-coop --help | head -1`, when head is done."""
    end, pipe = os.pipe()
    os.close(end)
    command = [sys.executable, ROOT / 'mmseg_coop_cli.py', *words]
    done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    os.close(pipe)
    assert done.stderr == ''
    assert done.returncode in (0, 1)  # argparse of some versions says nothing of it


#: Calls every tool with --help and with a mistyped option.
CALL = """
import contextlib, os, sys
from importlib.metadata import entry_points
(command,) = entry_points(group='console_scripts', name='mmseg-coop')
main = command.load()
for words in (['--help'], *([name, word] for name in sys.argv[1:] for word in ('--help', '--x'))):
    with contextlib.redirect_stdout(open(os.devnull, 'w')):
        try:
            main(words)
        except SystemExit as end:
            assert end.code == (2 if words[-1] == '--x' else 0), (words, end.code)
print(*{'torch', 'mmcv', 'mmengine', 'mmseg', 'mmseg_coop', 'scipy', 'timm'} & set(sys.modules))
"""


@pytest.mark.skipif(
    not entry_points(group='console_scripts', name='mmseg-coop'),
    reason='the project is not installed: there is no command mmseg-coop',
)
def test_help_and_a_mistyped_option_import_nothing_slow():
    done = subprocess.run(
        [sys.executable, '-c', CALL, *TOOLS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ''


@pytest.mark.parametrize(
    ('word', 'before', 'expected'),
    [
        ('check', 'mmseg-coop', ['check', 'check-config-names', 'check-dataset']),
        ('cross-coop_r18-x', 'train', ['cross-coop_r18-x41-d16_1xb6-88k_voc12aug-513x513.py']),
        (NAME, 'image.png', [f'{NAME}.py']),
        ('', '--work-dir', []),
    ],
)
def test_words_are_completed_for_bash(word, before, expected, capsys):
    main(['--complete', 'mmseg-coop', word, before])
    assert capsys.readouterr().out.split() == expected


@pytest.mark.parametrize('name', [NAME, f'{NAME}.py'])
def test_a_config_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(name)
    assert Path(cfg.filename).samefile(ROOT / f'configs/cross_coop/{NAME}.py')
    assert cfg.work_dir == f'work_dirs/{NAME}'
    with pytest.raises(FileNotFoundError, match=rf'does not exist. Did you mean {NAME}.py'):
        load_config(f'{NAME[:-7]}182x128.py')
    Path(f'{NAME}.py').write_text('mine = 1')  # a file of this name comes first
    assert load_config(f'{NAME}.py', check=False).mine == 1
