from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from mmengine.config.utils import MODULE2PACKAGE

import mmseg_coop
from mmseg_coop._stack import ONEDL, OPENMMLAB, check_stack, find_version

BOTH = {'timm': '1.0.31', 'torchvision': '0.29.1'}
ONEDL_VERSIONS = {
    'onedl-mmcv': '2.3.6',
    'onedl-mmengine': '0.10.12',
    'onedl-mmpretrain': '1.3.6',
    'onedl-mmsegmentation': '1.4.2',
    'torch': '2.14.1',
    'numpy': '2.4.6',
    **BOTH,
}
OPENMMLAB_VERSIONS = {
    'mmcv': '2.1.0',
    'mmengine': '0.10.7',
    'mmpretrain': '1.2.0',
    'mmsegmentation': '1.2.2',
    'torch': '2.1.2+cu121',
    'numpy': '1.26.4',
    'ftfy': '6.3.1',
    'regex': '2026.11.15',
    **BOTH,
}


def error_of(versions: dict[str, str]) -> str:
    with pytest.raises(RuntimeError) as raised:
        check_stack(versions.get)
    return str(raised.value)


def test_find_version_reads_what_is_installed():
    assert find_version('torch') == metadata.version('torch')
    assert find_version('no-such-distribution') is None


@pytest.mark.parametrize(
    ('versions', 'stack'), [(ONEDL_VERSIONS, ONEDL), (OPENMMLAB_VERSIONS, OPENMMLAB)]
)
def test_accepts_either_family(versions, stack):
    assert check_stack(versions.get) is stack


def test_accepts_a_container_s_pre_release_of_torch():
    assert check_stack({**ONEDL_VERSIONS, 'torch': '2.9.0a0+50eac811a6.nv25.9'}.get) is ONEDL


@pytest.mark.parametrize('intruder', ['mmcv', 'mmcv-lite', 'mmcv-full', 'mmengine-lite'])
def test_names_both_families_and_how_to_leave_one(intruder):
    lines = error_of({**ONEDL_VERSIONS, intruder: '2.1.0'}).splitlines()
    assert lines[0].startswith('Two families of distributions are installed at once')
    assert lines[1].startswith('  OneDL: onedl-mmcv 2.3.6, onedl-mmengine 0.10.12, ')
    assert lines[2] == f'  OpenMMLab: {intruder} 2.1.0'
    assert lines[4] == (
        f'  {sys.executable} -m pip uninstall -y onedl-mmcv onedl-mmengine onedl-mmpretrain '
        f'onedl-mmsegmentation {intruder}'
    )
    assert lines[5].startswith(f'  {sys.executable} -m pip install "onedl-mmcv>=2.3.6,<2.4" ')
    assert lines[7].startswith(f'  {sys.executable} -m pip install "mmcv>=2.1.0,<2.2" ')


def test_nothing_installed_asks_for_all_of_the_default():
    message = error_of({})
    assert 'found is neither' in message
    command = ' '.join(f'"{name}{allowed}"' for name, allowed in ONEDL.requirements.items())
    assert message.endswith(f'  {sys.executable} -m pip install {command}')


def test_only_the_family_missing_leaves_the_rest_alone():
    versions = {'torch': '2.14.1', **BOTH}
    message = error_of(versions)
    assert 'found is neither' in message
    assert message.count('found none') == 4
    assert '"torch' not in message


@pytest.mark.parametrize(
    ('base', 'name', 'version'),
    [
        (ONEDL_VERSIONS, 'onedl-mmcv', '2.3.5'),
        (ONEDL_VERSIONS, 'onedl-mmcv', '2.4.0'),
        (ONEDL_VERSIONS, 'onedl-mmsegmentation', '2.0.0'),
        (ONEDL_VERSIONS, 'torch', '2.3.1'),
        (OPENMMLAB_VERSIONS, 'mmcv', '2.2.0'),
        (OPENMMLAB_VERSIONS, 'numpy', '2.0.1'),
        *((OPENMMLAB_VERSIONS, name, None) for name in ('mmpretrain', 'ftfy', 'timm')),
    ],
)
def test_what_is_missing_or_out_of_range_is_named_with_the_command(base, name, version):
    stack = ONEDL if base is ONEDL_VERSIONS else OPENMMLAB
    allowed = stack.requirements[name]
    lines = error_of({**base, name: version}).splitlines()
    assert lines[1] == f'  {name}: found {version or "none"}, allowed {allowed or "any"}'
    assert lines[3:] == [f'  {sys.executable} -m pip install "{name}{allowed}"']


def test_import_makes_the_packages_scopes_known():
    stack = check_stack()
    assert MODULE2PACKAGE['mmseg'] == stack.modules['mmseg']
    assert MODULE2PACKAGE['mmpretrain'] == stack.modules['mmpretrain']
    assert MODULE2PACKAGE['mmseg_coop'] == 'mmseg_coop.registry'
    assert mmseg_coop.__version__


def test_importing_the_package_imports_nothing_that_mmseg_does_not():
    """Import takes as long as mmseg's own; what else a config names comes when it is built."""
    code = (
        'import sys\n'
        'import mmseg.datasets, mmseg.evaluation, mmseg.models, mmseg.visualization\n'
        "known = {*sys.stdlib_module_names, *(name.partition('.')[0] for name in sys.modules)}\n"
        'import mmseg_coop.apis\n'
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - known))"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.splitlines()[-1] == 'mmseg_coop mmseg_coop_cli'
