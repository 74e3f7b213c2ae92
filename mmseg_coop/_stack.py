"""The one check of the packages below us, made when :mod:`mmseg_coop` is imported.

Two families of distributions carry the import names ``mmcv``, ``mmengine``, ``mmseg`` and
``mmpretrain``: OneDL's, which are maintained, and OpenMMLab's originals. Either works; both in one
environment overwrite each other's files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Stack:
    """A family of distributions.

    Args:
        name: What the family is called in messages.
        modules: The distribution that carries each import name.
        others: More distributions that carry one of the import names; they count as this family's.
    """

    name: str
    modules: dict[str, str]
    others: tuple[str, ...] = ()

    @cached_property
    def requirements(self) -> dict[str, str]:
        """The range of versions allowed of each distribution, from the file that pip reads too."""
        file = Path(__file__).parent / 'requirements' / f'{self.name.lower()}.txt'
        return dict(re.findall(r'^([\w-]+)(.*)$', file.read_text('utf-8'), re.MULTILINE))


ONEDL = Stack(
    name='OneDL',
    modules={
        'mmcv': 'onedl-mmcv',
        'mmengine': 'onedl-mmengine',
        'mmpretrain': 'onedl-mmpretrain',
        'mmseg': 'onedl-mmsegmentation',
    },
)
OPENMMLAB = Stack(
    name='OpenMMLab',
    modules={
        'mmcv': 'mmcv',
        'mmengine': 'mmengine',
        'mmpretrain': 'mmpretrain',
        'mmseg': 'mmsegmentation',
    },
    others=('mmcv-full', 'mmcv-lite', 'mmengine-lite'),
)


def find_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def check_stack(version_of: Callable[[str], str | None] = find_version) -> Stack:
    """Find out which family is installed, and whether its versions are allowed.

    Args:
        version_of: Gives the version of a distribution, None where it is not installed.

    Returns:
        The family that is installed.

    Raises:
        RuntimeError: If both families or neither are installed, or a distribution is missing or its
            version not allowed. The message says what was found, what is allowed and the command
            that fixes it.
    """
    # Not an ImportError: of that mmengine makes a bare 'Failed to import', or nothing at all where
    # a config allows imports to fail.
    found = {stack.name: _find(stack, version_of) for stack in (ONEDL, OPENMMLAB)}
    if found[ONEDL.name] and found[OPENMMLAB.name]:
        raise RuntimeError(_both(found))
    stack = OPENMMLAB if found[OPENMMLAB.name] else ONEDL
    problems = _problems(stack, version_of)
    if problems:
        raise RuntimeError(_wrong_versions(stack, problems, nothing=not any(found.values())))
    return stack


def _find(stack: Stack, version_of: Callable[[str], str | None]) -> dict[str, str]:
    """Return the family's installed distributions with their versions."""
    versions = {name: version_of(name) for name in (*stack.modules.values(), *stack.others)}
    return {name: version for name, version in versions.items() if version is not None}


def _problems(stack: Stack, version_of: Callable[[str], str | None]) -> dict[str, str | None]:
    """Return what is installed of each requirement that is not met (None: nothing)."""
    installed = {name: version_of(name) for name in stack.requirements}
    if not any(installed.values()):
        return installed
    # Only now: an environment as empty as the above does not have packaging either.
    from packaging.specifiers import SpecifierSet

    return {
        name: version
        for name, version in installed.items()
        if version is None
        or not SpecifierSet(stack.requirements[name]).contains(version, prereleases=True)
    }


def _both(found: dict[str, dict[str, str]]) -> str:
    """Return the message about both families in one environment."""
    lists = [
        f'{stack}: ' + ', '.join(f'{name} {version}' for name, version in versions.items())
        for stack, versions in found.items()
    ]
    names = ' '.join(name for versions in found.values() for name in versions)
    return (
        "Two families of distributions are installed at once and overwrite each other's files.\n"
        + ''.join(f'  {line}\n' for line in lists)
        + 'Allowed is one of them. Remove both, then install one:\n'
        f'  {_pip("uninstall -y")} {names}\n'
        f'  {_install(ONEDL, ONEDL.modules.values())}\n'
        f"or, in place of the last line, for OpenMMLab's:\n"
        f'  {_install(OPENMMLAB, OPENMMLAB.modules.values())}'
    )


def _wrong_versions(stack: Stack, problems: dict[str, str | None], *, nothing: bool) -> str:
    """Return the message about versions that are missing or not allowed."""
    lines = ''.join(
        f'  {name}: found {version or "none"}, allowed {stack.requirements[name] or "any"}\n'
        for name, version in problems.items()
    )
    head = (
        'mmseg_coop needs mmsegmentation, from OneDL (the default) or OpenMMLab; found is neither.'
        if nothing
        else f"mmseg_coop with {stack.name}'s distributions needs other versions than these."
    )
    return f'{head}\n{lines}Fix it with:\n  {_install(stack, problems)}'


def _install(stack: Stack, names: Iterable[str]) -> str:
    """Return the command that installs distributions of a family in the versions allowed."""
    return ' '.join([_pip('install'), *(f'"{name}{stack.requirements[name]}"' for name in names)])


def _pip(command: str) -> str:
    return f'{sys.executable} -m pip {command}'
