"""mim on an installed wheel: configs by name, from a folder that is not the project's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    *('LICENSE', 'MANIFEST.in', 'README.md', 'model-index.yml', 'pyproject.toml', 'setup.py'),
    *('configs', 'mmseg_coop', 'requirements', 'requirements.txt', 'tools'),
)
#: Where the dependencies lie.
PACKAGES = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
NAME = 'cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128'
PAPER = 'cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513'


def installed(distribution):
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


pytestmark = pytest.mark.skipif(
    not installed('onedl-mim') and not installed('openmim'),
    reason="needs mim: pip install onedl-mim (or openmim, with OpenMMLab's releases)",
)


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """The interpreter of an environment with the wheel, in which nothing leads to this checkout."""
    folder = tmp_path_factory.mktemp('mim')
    project = folder / 'project'
    project.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns('.mim', '__pycache__', '.*_cache')
            shutil.copytree(source, project / name, ignore=ignore)
        else:
            shutil.copy2(source, project / name)
    pip = (sys.executable, '-m', 'pip')
    quiet = ('--quiet', '--no-deps')
    subprocess.run(
        [*pip, 'wheel', *quiet, '--no-build-isolation', '--wheel-dir', folder, project],
        check=True,
        cwd=folder,
    )
    (wheel,) = folder.glob('*.whl')
    environment = folder / 'environment'
    venv.create(environment, with_pip=False, symlinks=sys.platform != 'win32')
    python = next(
        path
        for path in (environment / 'bin/python', environment / 'Scripts/python.exe')
        if path.exists()
    )
    where = 'import site; print(site.getsitepackages()[-1])'
    site = subprocess.run([python, '-c', where], check=True, text=True, capture_output=True)
    site = Path(site.stdout.strip())
    # The .pth files in these folders are not read: an editable install of this checkout stays out.
    (site / 'dependencies.pth').write_text('\n'.join(PACKAGES))
    subprocess.run([*pip, 'install', *quiet, '--target', site, wheel], check=True, cwd=folder)
    return python


@pytest.fixture(scope='module')
def mim(python, tmp_path_factory):
    """Run mim in a folder that is not the project's; return its exit code and what it printed."""
    folder = tmp_path_factory.mktemp('foreign')

    def call(*words):
        done = subprocess.run(
            [python, '-m', 'mim', *map(str, words)],
            cwd=folder,
            # mim makes a cache in the home folder.
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'HOME': str(folder), 'PAGER': 'cat'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    call.folder = folder
    return call


def options(data_root):
    splits = ('train', 'val', 'test')
    return [
        '--cfg-options',
        *(f'{split}_dataloader.dataset.data_root={data_root}' for split in splits),
        *(f'{split}_dataloader.num_workers=0' for split in splits),
        *(f'{split}_dataloader.persistent_workers=False' for split in splits),
        'train_dataloader.batch_size=2',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
    ]


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    out = tmp_path_factory.mktemp('camvid') / 'data'
    tool = ROOT / 'tools/dataset_converters/make_mini_dataset.py'
    words = ('--layout', 'camvid', '--out', out, '--train', 4, '--val', 2, '--size', '64x64')
    subprocess.run(
        [sys.executable, str(tool), *map(str, words)], check=True, capture_output=True
    )  # fmt: skip
    return out


def test_search_finds_every_model_of_the_metafiles(mim):
    code, text = mim('search', 'mmseg_coop')
    assert code == 0, text
    names = re.findall(r'config id: (\S+)', text)
    metafiles = '\n'.join(path.read_text() for path in ROOT.glob('configs/*/metafile.yml'))
    assert sorted(names) == sorted(re.findall(r'^- Name: (\S+_\S+)$', metafiles, re.MULTILINE))
    assert PAPER in names


def test_search_narrows_down(mim):
    code, text = mim('search', 'mmseg-coop', '--config', PAPER)
    assert code == 0, text
    assert re.findall(r'config id: (\S+)', text) == [PAPER]
    assert 'pascal voc 2012 val/top_miou' in text


def test_download_ends_since_there_are_no_weights(mim):
    """The metafiles name none, and mim copies a config only with its weights."""
    code, text = mim('download', 'mmseg_coop', '--config', PAPER, '--dest', 'downloaded')
    assert code == 1
    assert re.search(r"Expected fields: .*but got \{'weight'\}", text, re.DOTALL)


def test_a_config_is_saved_by_its_name(python, tmp_path):
    """What the README gives in place of `mim download`."""
    code = (
        'import mmseg_coop; from mmengine.hub import get_config; '
        f'get_config("mmseg_coop::cross_coop/{PAPER}.py").dump("saved.py")'
    )
    readme = (ROOT / 'README.md').read_text()
    assert code.replace('saved.py', 'my_config.py') in readme
    subprocess.run([python, '-c', code], cwd=tmp_path, check=True)
    saved = Config.fromfile(tmp_path / 'saved.py', import_custom_modules=False)
    original = Config.fromfile(ROOT / f'configs/cross_coop/{PAPER}.py', import_custom_modules=False)
    assert saved.train_cfg.max_iters == original.train_cfg.max_iters == 88000


def test_a_wrong_name_is_said(mim):
    code, text = mim('train', 'mmseg_coop', 'cross-coop_gone.py')
    assert code == 1
    assert "The path cross-coop_gone.py doesn't exist and we can not find" in text


@pytest.mark.slow
@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
def test_train_and_test_by_name_and_by_path(launcher, mim, python, data_root):
    out = mim.folder / launcher
    launch = () if launcher == 'none' else ('--launcher', launcher, '--gpus', 2)
    code, text = mim(
        'train', 'mmseg_coop', f'{NAME}.py', *launch, '--work-dir', out, *options(data_root)
    )
    assert code == 0, text
    assert f'mmseg_coop+mim/.mim/configs/cross_coop/{NAME}.py instead' in text or (
        installed('openmim') and f'mmseg_coop/.mim/configs/cross_coop/{NAME}.py instead' in text
    )
    assert str(ROOT) not in re.search('Training command is .*', text)[0].replace(str(data_root), '')
    assert 'Training finished successfully.' in text
    # The work directory holds the config with its options: a path that exists.
    code, text = mim(
        'test', 'mmseg_coop', out / f'{NAME}.py', '--checkpoint', out / 'iter_2.pth', *launch,
        '--work-dir', out / 'test', '--output', 'top',
    )  # fmt: skip
    assert code == 0, text
    assert 'Testing finished successfully.' in text
    assert (out / 'test/iou.jsonl').read_text().count('\n') == 1
