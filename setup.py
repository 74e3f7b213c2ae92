"""Adds the configs and tools that mim and ``mmseg_coop::…`` look for to what is installed."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = 'mmseg_coop'
MIM = ('configs', 'demo', 'tools', 'model-index.yml')  # what `.mim` holds, by its names in ROOT
# OneDL's mim looks for `.mim` in the first folder of an installed wheel's RECORD, which pip sorts.
# That is `../../../bin`, with our command. So a folder that comes before it, and that cannot be
# taken for a module, holds `.mim` once more.
FIRST_IN_RECORD = f'+{PACKAGE}'


class BuildPyWithMim(build_py):
    """Also provides ``.mim`` for both mims: copies for a wheel, links for an editable install."""

    def run(self) -> None:
        """Build the package afresh, then add ``.mim``."""
        if self.editable_mode:
            super().run()
            self.provide_mim(ROOT / PACKAGE / '.mim', link=True)
        else:
            # An earlier build leaves its files here: one deleted since would end up in the wheel.
            shutil.rmtree(self.build_lib, ignore_errors=True)
            super().run()
            for folder in (PACKAGE, FIRST_IN_RECORD):
                self.provide_mim(Path(self.build_lib, folder, '.mim'), link=False)
            # With a file in it, pip removes the folder when it uninstalls.
            Path(self.build_lib, FIRST_IN_RECORD, 'README.txt').write_text(
                f"What {PACKAGE}/.mim holds, where OneDL's mim looks for it.\n", encoding='utf-8'
            )

    def provide_mim(self, mim: Path, *, link: bool) -> None:
        """Fill the folder ``mim`` anew; where links are asked for but impossible, with copies."""
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in MIM:
            source, target = ROOT / name, mim / name
            if link:
                try:
                    target.symlink_to(
                        os.path.relpath(source, mim), target_is_directory=source.is_dir()
                    )
                    continue
                except OSError:  # Windows without the privilege to make links
                    self.announce(f'no links here, copying {name}: install again after editing it')
            if source.is_dir():
                shutil.copytree(
                    source, target, ignore=shutil.ignore_patterns('__pycache__', '.*', 'output')
                )
            else:
                shutil.copy2(source, target)


# What setuptools tells everyone who installs an editable package.
warnings.filterwarnings('ignore', 'Editable installation')
# All else is in pyproject.toml, where setuptools < 77, which the OpenMMLab stack needs, cannot read
# the SPDX identifier of a license.
setup(license='Apache-2.0', cmdclass={'build_py': BuildPyWithMim})
