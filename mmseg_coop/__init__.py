"""Cooperative semantic segmentation networks, as a plugin for MMSegmentation.

Importing the package registers its classes with mmseg's registries. It also makes ``mmseg_coop::…``
work in ``_base_``, and ``mmseg::…`` and ``mmpretrain::…`` with either family of distributions.
"""

from __future__ import annotations

from mmseg_coop_cli import quiet_imports

from ._stack import check_stack
from .version import __version__

_stack = check_stack()  # before anything below imports the packages it is about

with quiet_imports():
    from mmengine.config.utils import MODULE2PACKAGE

    from . import datasets, engine, evaluation, models, registry, visualization
    from .apis import CoopModel, create_model, list_models

MODULE2PACKAGE.update(
    {module: _stack.modules[module] for module in ('mmseg', 'mmpretrain')},
    # A module rather than our distribution: mmengine takes the folder the module lies in, where
    # `.mim` is however we are installed. Of a distribution it takes the folder in site-packages,
    # which an editable install does not have.
    mmseg_coop='mmseg_coop.registry',
)

__all__ = [
    'CoopModel',
    '__version__',
    'create_model',
    'datasets',
    'engine',
    'evaluation',
    'list_models',
    'models',
    'registry',
    'visualization',
]
