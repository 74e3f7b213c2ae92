"""The project as its users install it: without this folder, beside its dependencies."""

from __future__ import annotations

import ast
import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import mmseg_coop
from mmseg_coop._stack import ONEDL, check_stack

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    *('LICENSE', 'MANIFEST.in', 'README.md', 'model-index.yml', 'pyproject.toml', 'setup.py'),
    *('configs', 'mmseg_coop', 'requirements', 'requirements.txt', 'tools'),
)
#: Where the dependencies lie.
PACKAGES = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
CONFIG = 'cross_coop/cross-coop_mnv2-effl0-d16_1xb6-2k_camvid-180x240.py'
# Two iterations on two images, then one round of validation.
SMALL = """
_base_ = {base!r}
small = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root={data!r}))
train_dataloader = dict(batch_size=2, **small)
val_dataloader = small
train_cfg = dict(max_iters=2, val_interval=2)
network = dict(init_cfg=None)
model = dict(backbone=dict(networks=dict(top=network, bottom=network)))
"""


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
    install = (
        sys.executable,
        '-m',
        'pip',
        'install',
        '--quiet',
        '--no-deps',
        '--target',
        site,
        wheel,
    )
    run(*install, cwd=folder)
    return python


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A copy of the project in which files of earlier builds lie about."""
    copy = tmp_path_factory.mktemp('project')
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns('.*', '__pycache__'))
        else:
            shutil.copy2(source, copy / name)
    for stale in (
        'build/lib/mmseg_coop/stale.py',
        'build/lib/mmseg_coop+mim/.mim/tools/stale.py',
        'mmseg_coop/.mim/configs/stale.py',
        'tools/.mypy_cache/stale.json',
    ):
        (copy / stale).parent.mkdir(parents=True)
        (copy / stale).touch()
    return copy


@pytest.fixture(scope='module')
def wheel(project):
    dist = project / 'dist'
    run(
        *(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation'),
        *('--wheel-dir', dist, project),
        cwd=project,
    )
    return next(dist.glob('mmseg_coop-*.whl'))


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    """The interpreter of an environment with the wheel."""
    return make_environment(tmp_path_factory.mktemp('environment'), wheel)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Two images and labels for each split, laid out as CamVid is."""
    root = tmp_path_factory.mktemp('camvid')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('a', 'b'):
            image = rng.integers(256, size=(180, 240, 3), dtype=np.uint8)
            labels = rng.integers(11, size=(180, 240), dtype=np.uint8)
            for path, pixels in (
                (f'img_dir/{split}/{name}.jpg', image),
                (f'ann_dir/{split}/{name}.png', labels),
            ):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / path), pixels)
    return root


def names_in(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if '.dist-info/' not in name}


def test_wheel_holds_package_configs_and_tools_and_nothing_stale(project, wheel):
    mims = ('mmseg_coop/.mim', 'mmseg_coop+mim/.mim')  # the second is for OneDL's mim
    expected = {'mmseg_coop+mim/README.txt', *(f'{mim}/model-index.yml' for mim in mims)}
    for folder in ('mmseg_coop', 'configs', 'tools'):
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


def mmseg_train_tool() -> Path:
    return Path(importlib.util.find_spec('mmseg').origin).parent / '.mim/tools/train.py'


def test_mmseg_trains_our_config_through_custom_imports_alone(python, data, tmp_path):
    show = 'import importlib.util as u; print(u.find_spec("mmseg_coop").origin)'
    package = Path(run(python, '-c', show, cwd=tmp_path).strip()).parent
    assert package.is_relative_to(python.parents[1])
    base = package / '.mim/configs' / CONFIG
    (tmp_path / 'small.py').write_text(SMALL.format(base=str(base), data=str(data)))
    log = run(python, mmseg_train_tool(), 'small.py', '--work-dir', 'out', cwd=tmp_path)
    assert (tmp_path / 'out/iter_2.pth').is_file()
    assert 'ensemble/mIoU' in log


def test_config_that_inherits_through_our_scope(python, data, tmp_path):
    (tmp_path / 'small.py').write_text(SMALL.format(base=f'mmseg_coop::{CONFIG}', data=str(data)))
    resolve = (
        'import mmseg_coop; from mmengine.config import Config; '
        'Config.fromfile("small.py").dump("resolved.py")'
    )
    run(python, '-c', resolve, cwd=tmp_path)
    assert "_scope_='mmseg_coop'" in (tmp_path / 'resolved.py').read_text()
    # Resolved, nobody has to import us first, and all that carries our scope builds without a word.
    log = run(python, mmseg_train_tool(), 'resolved.py', '--work-dir', 'out', cwd=tmp_path)
    assert (tmp_path / 'out/iter_2.pth').is_file()
    assert not re.findall('.*(?:registry tree|is not installed|Failed to import `).*', log)


@pytest.mark.skipif(
    any(Path(path, 'mmseg_coop').is_dir() for path in PACKAGES),
    reason='the package is installed beside its dependencies, where it is found before a checkout',
)
def test_editable_install_links_configs_and_tools(project, tmp_path):
    for _ in range(2):  # the second time over what the first one left
        editable = build(project, 'editable')
    mim = project / 'mmseg_coop/.mim'
    assert sorted(path.name for path in mim.iterdir()) == ['configs', 'model-index.yml', 'tools']
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
    assert words == [str(project / 'mmseg_coop/__init__.py'), '2000', '2000']


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


@pytest.mark.skipif(check_stack() is not ONEDL, reason="OpenMMLab's mmseg itself imports mmcv.ops")
def test_every_module_imports_without_mmcv_ops():
    code = (
        'import importlib, pkgutil, sys\n'
        'sys.modules["mmcv.ops"] = None  # makes its import fail\n'
        'import mmseg_coop\n'
        'walk = pkgutil.walk_packages(mmseg_coop.__path__, "mmseg_coop.")\n'
        'print(len([importlib.import_module(module.name) for module in walk]))'
    )
    printed = run(sys.executable, '-c', code, cwd=ROOT)
    modules = [path for path in (ROOT / 'mmseg_coop').rglob('*.py') if path.name != '__init__.py']
    assert int(printed.split()[-1]) >= len(modules)
