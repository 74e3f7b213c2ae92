from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')


def make(*arguments: str) -> tuple[int, str, str]:
    command = ['make', '--directory', str(ROOT), '--no-print-directory', *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_help_is_the_default_and_lists_the_targets():
    code, out, _ = make()
    assert code == 0
    assert make('help')[1] == out
    listed = {line.split()[0] for line in out.splitlines()[1:]}
    assert {'demo', 'test', 'lint', 'test-slow', 'test-cuda', 'docs', 'release-check'} <= listed


@pytest.mark.parametrize(
    ('stack', 'word', 'version', 'message'),
    [
        ('onedl', 'version_info', '3.9.18', 'found Python 3.9.18, needed is Python >= 3.10'),
        (
            'openmmlab',  # for which there are no wheels
            '>= (3, 12)',
            '3.12.1',
            'found Python 3.12.1, needed is Python >= 3.10 and < 3.12',
        ),
        ('onedl', 'ensurepip', '3.11.7', 'cannot make virtual environments: install its venv'),
    ],
)
def test_unfit_interpreter_is_refused_before_anything_is_made(
    tmp_path, stack, word, version, message
):
    python, venv = tmp_path / 'python', tmp_path / 'venv'
    python.write_text(
        '#!/bin/sh\n'
        f'case "$*" in --version) echo "Python {version}"; exit 0;; *"{word}"*) exit 1;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    code, _, err = make('install', f'STACK={stack}', f'PYTHON={python}', f'VENV={venv}')
    assert code == 2
    assert message in err.splitlines()[0]
    assert 'make PYTHON=/path/to/python3' in err.splitlines()[0]
    assert not venv.exists()


def test_ci_runs_what_the_readme_documents_and_nothing_else():
    lines = (ROOT / '.ci/run').read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith(('#', 'set ', 'cd '))]
    assert commands == ['make test', 'make demo', 'make test-slow']
    readme = (ROOT / 'README.md').read_text()
    assert all(command in readme for command in commands)


def test_release_is_refused_under_a_tag_that_is_not_its_version():
    code, _, err = make('release-tag', 'TAG=v99.0')
    assert code == 2
    assert err.startswith('make: TAG is v99.0, but mmseg_coop/version.py says ')
    assert make('release-tag')[0] == 0
