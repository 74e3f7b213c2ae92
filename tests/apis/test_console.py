"""The console of a run says what its user needs; the log file has the rest."""

from __future__ import annotations

import ast
import io
import sys
import warnings
from pathlib import Path

import pytest
from mmengine.logging import MMLogger

from mmseg_coop.apis.console import Console
from tests.conftest import MINI, ROOT

#: What the log file has, and the console has not.
LOG_ONLY = (
    'System environment:',
    'optimizer=dict(',
    'Hooks will be executed',
    'will be deprecated',
    'The prefix is not set',
    'The draw is False',
    'decode.top.loss_ce',
)


def names(lines):
    return [line.partition(' ')[0] for line in lines]


def test_a_training_shows_its_head_its_progress_tables_and_files(trained):
    work_dir, printed = trained
    lines = printed.splitlines()
    assert names(lines[:5]) == ['config', 'data', 'model', 'work_dir', 'seed']
    assert lines[1].split(maxsplit=1)[1] == '8 images to train, 3 images to val, 11 classes'
    assert lines[2].split(maxsplit=1)[1] == 'CrossCoopEncoderDecoder, 1.55 M parameters on cpu'

    assert [line.split()[1] for line in lines if line.startswith('train ')] == [
        f'{done}/4' for done in (1, 2, 3, 4)
    ]
    rows = [line for line in lines if line[:1] in '+|']
    assert len(rows) == 4 * 7  # two evaluations with two tables each

    files = dict(line.split(maxsplit=1) for line in lines[-3:])
    assert list(files) == ['checkpoint', 'best', 'log']
    assert all(
        Path(file).is_file() and Path(file).is_relative_to(work_dir) for file in files.values()
    )
    assert len(lines) < 60
    log = Path(files['log']).read_text()
    for text in LOG_ONLY:
        assert text in log, text
        assert text not in printed, text


def test_a_test_shows_its_head_its_progress_tables_and_files(
    tool, trained, mini_data, run_options, tmp_path
):
    checkpoint = trained[0] / 'iter_4.pth'
    folders = ('--work-dir', tmp_path, '--show-dir', tmp_path / 'show', '--out', tmp_path / 'maps')
    done = tool('tools/test.py', MINI, checkpoint, *folders, *run_options(mini_data()))
    assert done.stderr == ''
    lines = done.stdout.splitlines()
    assert names(lines[:6]) == ['config', 'data', 'model', 'weights', 'work_dir', 'seed']
    assert lines[3].split() == ['weights', str(checkpoint)]
    assert [line.split()[1] for line in lines if line.startswith('test ')] == ['1/3', '2/3', '3/3']
    files = dict(line.split(maxsplit=1) for line in lines[-4:])
    assert list(files) == ['results', 'figures', 'label_maps', 'log']
    assert all(Path(file).exists() for file in files.values())
    assert len(lines) < 40


def test_a_resumed_training_takes_the_seed_of_its_checkpoint(
    tool, trained, mini_data, run_options, tmp_path
):
    checkpoint = trained[0] / 'iter_4.pth'
    words = ('--work-dir', tmp_path, '--resume', checkpoint, *run_options(mini_data()))
    lines = tool('tools/train.py', MINI, *words).stdout.splitlines()
    assert lines[5].split(maxsplit=1) == ['seed', 'that of the checkpoint']
    assert not [line for line in lines if 'randomness' in line]
    # what does not fit is said once, with what can be done
    done = tool('tools/train.py', MINI, *words, 'model.decode_head.channels=16')
    assert 'does not fit' not in done.stdout
    assert 'does not fit the config: size mismatch' in done.stderr
    assert 'Resume it with the model and the optimizer' in done.stderr


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('train_dataloader.dataset.data_root=gone', "error: data root 'gone' of the train split"),
        ('default_hooks.checkpoint.interval=0', 'error: interval of AtomicCheckpointHook is 0'),
    ],
)
def test_an_error_at_the_start_comes_before_everything(
    tool, mini_data, run_options, tmp_path, option, message
):
    words = (MINI, '--work-dir', tmp_path, *run_options(mini_data(), option))
    done = tool('tools/train.py', *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, '')
    (line,) = done.stderr.splitlines()
    assert line.startswith(message)


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """The lines as they stand in the end."""
        return [line.rpartition('\r\x1b[K')[2] for line in self.getvalue().split('\n')]


def test_on_a_terminal_the_progress_is_written_over(monkeypatch):
    monkeypatch.setattr(sys, 'stdout', Terminal())
    monkeypatch.setenv('COLUMNS', '11')
    with Console() as console:
        console.progress('train 1/3 and more', is_due=False)
        console.progress('train 2/3', is_due=True)
        console.write('a table')
        console.progress('train 3/3 and more', is_due=True)
    assert console.stream.screen() == ['a table', 'train 3/3 ', '']


def test_elsewhere_the_progress_is_printed_when_it_is_due(monkeypatch):
    monkeypatch.setattr(sys, 'stdout', io.StringIO())
    with Console() as console:
        for number in range(4):
            console.progress(f'train {number}', is_due=number % 2 == 0)
    assert console.stream.getvalue() == 'train 0\ntrain 2\n'


def test_which_part_of_the_log_is_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'stdout', io.StringIO())
    logger = MMLogger.get_instance('run', log_file=str(tmp_path / 'log'))
    with Console() as console:
        console.attach(logger)
        logger.info('Iter(train) [1/4]')
        logger.info('\nIoU per class:\n+---+\n| 1 |\n+---+')
        for _ in range(2):
            logger.warning('lr is 0')
        logger.warning('"FileClient" will be deprecated in future.')
        logger.error('broken')
        warnings.warn("Python's", UserWarning, stacklevel=1)
    assert console.stream.getvalue() == (
        'IoU per class:\n+---+\n| 1 |\n+---+\nwarning: lr is 0\nerror: broken\n'
    )
    log = (tmp_path / 'log').read_text()
    for text in (
        'Iter(train)',
        'IoU per',
        'lr is 0',
        'FileClient',
        'broken',
        "UserWarning: Python's",
    ):
        assert log.count(text) == 1, text


def test_tools_import_mmseg_by_way_of_the_package():
    """So that what it says when it is imported can be left out."""
    files = [file for folder in ('tools', 'demo') for file in (ROOT / folder).rglob('*.py')]
    assert len(files) > 20
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module = getattr(node, 'module', None) or node.names[0].name
                assert module.partition('.')[0] not in ('mmseg', 'mmpretrain'), file
