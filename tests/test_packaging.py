"""The project as its users install it: without this folder, beside its dependencies, and by mim."""

from __future__ import annotations

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import ZipFile

import mmseg
import pytest
from mmengine.config import Config
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import mmseg_coop
from mmseg_coop._stack import ONEDL
from tests.conftest import ROOT

SOURCES = (
    *('LICENSE', 'MANIFEST.in', 'README.md', 'model-index.yml', 'pyproject.toml', 'setup.py'),
    *('configs', 'demo', 'mmseg_coop', 'mmseg_coop_cli.py', 'requirements', 'requirements.txt'),
    'tools',
)
IN_MIM = ('configs', 'demo', 'model-index.yml', 'tools')
#: Where the dependencies lie.
PACKAGES = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
NAME = 'cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128'
PAPER = 'cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513'
CONFIG = f'cross_coop/{NAME}.py'
# Two iterations, then one round of validation.
SMALL = """
_base_ = {base!r}
small = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root={data!r}))
train_dataloader = dict(batch_size=2, **small)
val_dataloader = small
train_cfg = dict(max_iters=2, val_interval=2)
"""


def installed(distribution):
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


needs_mim = pytest.mark.skipif(
    not installed('onedl-mim') and not installed('openmim'),
    reason="needs mim: pip install onedl-mim (or openmim, with OpenMMLab's releases)",
)


def run(*command: object, cwd: Path) -> str:
    """Run a command and return all it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        # Threads of several processes on few cores wait for each other longer than they work.
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(project: Path, what: str) -> Path:
    """Call one hook of the build backend and return the file it made."""
    code = f'from setuptools import build_meta; print(build_meta.build_{what}("dist"))'
    return project / 'dist' / run(sys.executable, '-c', code, cwd=project).split()[-1]


def make_environment(folder: Path, wheel: Path) -> Path:
    """Make an environment of the running one's packages and ``wheel``; return its interpreter."""
    venv.create(folder, with_pip=False, symlinks=sys.platform != 'win32')
    python = next(
        path for path in (folder / 'bin/python', folder / 'Scripts/python.exe') if path.exists()
    )
    site = Path(
        run(python, '-c', 'import site; print(site.getsitepackages()[-1])', cwd=folder).strip()
    )
    # Packages of a folder named in a .pth file are found, but the .pth files in it are not read:
    # an editable install of this checkout stays out.
    (site / 'dependencies.pth').write_text('\n'.join(PACKAGES))
    pip = (sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps')
    run(*pip, '--target', site, wheel, cwd=folder)
    return python


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A copy of the project in which files of earlier builds lie about."""
    copy = tmp_path_factory.mktemp('project')
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns('.*', '__pycache__', 'output')
            shutil.copytree(source, copy / name, ignore=ignore)
        else:
            shutil.copy2(source, copy / name)
    for stale in (
        'build/lib/mmseg_coop/stale.py',
        'build/lib/+mmseg_coop/.mim/tools/stale.py',
        'mmseg_coop/.mim/configs/stale.py',
        'tools/.mypy_cache/stale.json',
    ):
        (copy / stale).parent.mkdir(parents=True)
        (copy / stale).touch()
    return copy


@pytest.fixture(scope='module')
def wheel(project):
    return build(project, 'wheel')


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    """The interpreter of an environment with the wheel, which is found there."""
    python = make_environment(folder := tmp_path_factory.mktemp('environment'), wheel)
    show = 'import importlib.util as u; print(u.find_spec("mmseg_coop").origin)'
    assert Path(run(python, '-c', show, cwd=folder).strip()).is_relative_to(folder)
    return python


def names_in(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if '.dist-info/' not in name}


def test_wheel_holds_package_configs_tools_and_demo_and_nothing_stale(project, wheel):
    mims = ('mmseg_coop/.mim', '+mmseg_coop/.mim')  # the second is for OneDL's mim
    expected = {'mmseg_coop_cli.py', '+mmseg_coop/README.txt'}
    expected |= {f'{mim}/model-index.yml' for mim in mims}
    for folder in ('mmseg_coop', 'configs', 'demo', 'tools'):
        for path in (project / folder).rglob('*'):
            name = path.relative_to(project).as_posix()
            if path.is_file() and not {'.mim', '.mypy_cache', '__pycache__'} & set(path.parts):
                in_mim = (f'{mim}/{name}' for mim in mims)
                expected.update([name] if folder == 'mmseg_coop' else in_mim)
    assert names_in(wheel) == expected
    assert {f'mmseg_coop/.mim/configs/{CONFIG}', 'mmseg_coop/py.typed'} <= expected


def test_wheel_states_its_metadata_and_requires_the_default_stack(wheel):
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata['Name'] == 'mmseg-coop'
    assert metadata['Version'] == mmseg_coop.__version__
    assert metadata['License'] == 'Apache-2.0'
    assert metadata['Requires-Python'] == '>=3.10'
    assert metadata.get_payload().startswith('# mmseg-coop\n')
    requirements = [Requirement(line) for line in metadata.get_all('Requires-Dist')]
    required = {item.name: item.specifier for item in requirements if item.marker is None}
    assert {name: required[name] for name in ONEDL.requirements} == {
        name: SpecifierSet(allowed) for name, allowed in ONEDL.requirements.items()
    }
    assert 'scipy' in required
    assert 'pytest' not in required
    assert {item.name for item in requirements} >= {'pytest', 'sphinx'}  # of the two extras


def test_source_distribution_builds_the_same_wheel(project, wheel, tmp_path):
    shutil.unpack_archive(build(project, 'sdist'), tmp_path)
    (unpacked,) = tmp_path.iterdir()
    assert not list(unpacked.rglob('stale.*'))
    assert names_in(build(unpacked, 'wheel')) == names_in(wheel)


def test_command_of_the_wheel_finds_its_tools_and_configs(python, tmp_path):
    command = (python, '-m', 'mmseg_coop_cli')
    said = run(*command, '--help', cwd=tmp_path)
    assert re.search('^  predict  +Segment an image', said, re.MULTILINE)
    assert 'max_iters=200' in run(*command, 'print-config', NAME, cwd=tmp_path)


def test_configs_are_saved_by_name_and_inherited_ones_trained_by_mmseg(python, mini_data, tmp_path):
    # What the README gives in place of `mim download`.
    save = (
        'import mmseg_coop; from mmengine.hub import get_config; '
        f'get_config("mmseg_coop::cross_coop/{PAPER}.py").dump("saved.py")'
    )
    assert save.replace('saved.py', 'my_config.py') in (ROOT / 'README.md').read_text()
    small = SMALL.format(base=f'mmseg_coop::{CONFIG}', data=str(mini_data()))
    (tmp_path / 'small.py').write_text(small)
    resolve = 'from mmengine.config import Config; Config.fromfile("small.py").dump("resolved.py")'
    run(python, '-c', f'{save}; {resolve}', cwd=tmp_path)
    saved = Config.fromfile(tmp_path / 'saved.py', import_custom_modules=False)
    original = Config.fromfile(ROOT / f'configs/cross_coop/{PAPER}.py', import_custom_modules=False)
    assert saved.train_cfg.max_iters == original.train_cfg.max_iters == 88000
    assert "_scope_='mmseg_coop'" in (tmp_path / 'resolved.py').read_text()
    # Resolved, nobody has to import us first, and all that carries our scope builds without a word.
    train = Path(mmseg.__file__).parent / '.mim/tools/train.py'
    log = run(python, train, 'resolved.py', '--work-dir', 'out', cwd=tmp_path)
    assert (tmp_path / 'out/iter_2.pth').is_file()
    assert 'ensemble/mIoU' in log
    assert not re.findall('.*(?:registry tree|is not installed|Failed to import `).*', log)


@pytest.mark.skipif(
    any(Path(path, 'mmseg_coop').is_dir() for path in PACKAGES),
    reason='the package is installed beside its dependencies, where it is found before a checkout',
)
def test_editable_install_links_configs_tools_and_demo(project, tmp_path):
    for _ in range(2):  # the second time over what the first one left
        editable = build(project, 'editable')
    mim = project / 'mmseg_coop/.mim'
    assert sorted(path.name for path in mim.iterdir()) == [*IN_MIM]
    for path in mim.iterdir():
        assert path.samefile(project / path.name)
    python = make_environment(tmp_path / 'environment', editable)
    (tmp_path / 'user.py').write_text(f"_base_ = 'mmseg_coop::{CONFIG}'\n")
    code = (
        'import mmseg_coop; from mmengine import Config; from mmengine.hub import get_config; '
        f'configs = Config.fromfile("user.py"), get_config("mmseg_coop::{CONFIG}"); '
        'print(mmseg_coop.__file__, *[config.train_cfg.max_iters for config in configs])'
    )
    words = run(python, '-c', code, cwd=tmp_path).split()[-3:]
    assert words == [str(project / 'mmseg_coop/__init__.py'), '200', '200']


def test_editable_install_copies_where_links_are_impossible(project):
    code = (
        'import os; from pathlib import Path; from setuptools import build_meta\n'
        'def refuse(*args, **kwargs): raise OSError("no privilege")\n'
        'Path.symlink_to = refuse\n'
        'build_meta.build_editable("dist")'
    )
    run(sys.executable, '-c', code, cwd=project)
    mim = project / 'mmseg_coop/.mim'
    assert not any(path.is_symlink() for path in mim.iterdir())
    assert (mim / 'configs' / CONFIG).read_text() == (ROOT / 'configs' / CONFIG).read_text()


def test_no_module_imports_mmcv_ops():
    for path in (ROOT / 'mmseg_coop').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f'{node.module}.{alias.name}' for alias in node.names]
            assert not [name for name in names if f'{name}.'.startswith('mmcv.ops.')], path


# mim: configs by name, from a folder that is not the project's


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


@needs_mim
def test_search_finds_every_model_of_the_metafiles(mim):
    code, text = mim('search', 'mmseg_coop')
    assert code == 0, text
    names = re.findall(r'config id: (\S+)', text)
    metafiles = '\n'.join(path.read_text() for path in ROOT.glob('configs/*/metafile.yml'))
    assert sorted(names) == sorted(re.findall(r'^- Name: (\S+_\S+)$', metafiles, re.MULTILINE))
    assert PAPER in names
    assert 'pascal voc 2012 val/top_miou' in text


@pytest.mark.slow
@needs_mim
def test_download_ends_since_there_are_no_weights(mim):
    """The metafiles name none, and mim copies a config only with its weights."""
    code, text = mim('download', 'mmseg_coop', '--config', PAPER, '--dest', 'downloaded')
    assert code == 1
    assert re.search(r"Expected fields: .*but got \{'weight'\}", text, re.DOTALL)


@pytest.mark.slow
@needs_mim
def test_a_wrong_name_is_said(mim):
    code, text = mim('train', 'mmseg_coop', 'cross-coop_gone.py')
    assert code == 1
    assert "The path cross-coop_gone.py doesn't exist and we can not find" in text


@pytest.mark.slow
@needs_mim
@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
def test_train_and_test_by_name_and_by_path(launcher, mim, mini_data, run_options):
    out = mim.folder / launcher
    launch = () if launcher == 'none' else ('--launcher', launcher, '--gpus', 2)
    code, text = mim(
        *('train', 'mmseg_coop', f'{NAME}.py', *launch, '--work-dir', out),
        *run_options(data_root := mini_data(), 'train_cfg.max_iters=2'),
    )
    assert code == 0, text
    assert f'+mmseg_coop/.mim/configs/cross_coop/{NAME}.py instead' in text or (
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
