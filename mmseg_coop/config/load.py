"""Reads a config the way every tool does."""

from __future__ import annotations

import argparse
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from mmseg_coop_cli import quiet_imports

from ..errors import ConfigError, CoopError, did_you_mean, first_few
from .check import check_config
from .ignore_index import settle_ignore_index

PACKAGE = Path(__file__).resolve().parents[1]


def load_config(
    path: str,
    *,
    cfg_options: Mapping[str, Any] | Sequence[str] | None = None,
    work_dir: str | None = None,
    check: bool = True,
) -> Config:
    """Read a config, apply the options of the command line and settle the work directory.

    Args:
        path: Config file, or the name of one that is installed with the project.
        cfg_options: Values by dotted key, or the words ``KEY=VALUE`` of a command line. Defaults to
            None.
        work_dir: Where the run writes. Defaults to None: the config's, or else
            ``work_dirs/{name of the config}``.
        check: Whether to look for slips, see :func:`check_config`, and to let all parts ignore the
            same label. Defaults to True.

    Returns:
        The config.

    Raises:
        FileNotFoundError: There is no such file; the message names similar ones.
        ConfigError: The file cannot be read as a config, an option does not fit it, a key, a type
            or a number cannot be meant, or parts contradict each other.
    """
    path = find_config(path)
    with _as_config_error(f'config {path!r} cannot be read'), quiet_imports():
        cfg = Config.fromfile(path)
    if cfg_options:
        with _as_config_error('--cfg-options does not fit the config'):
            cfg.merge_from_dict(
                cfg_options if isinstance(cfg_options, Mapping) else parse_options(cfg_options)
            )
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', Path(path).stem)
    if check:
        check_config(cfg)
        settle_ignore_index(cfg)
    return cfg


def find_config(path: str) -> str:
    """Find a config as mim does: by its path, or among those of the project by its name.

    Args:
        path: Config file, or the name of one that is installed with the project.

    Returns:
        The file.

    Raises:
        FileNotFoundError: There is no such file; the message names similar ones.
    """
    if osp.isfile(path):
        return path
    shipped = shipped_configs()
    for name in (path, f'{path}.py'):
        if name in shipped:
            return shipped[name]
    known = {*shipped, *(file.name for file in Path(path).parent.glob('*.py'))}
    longer = first_few(sorted(name for name in known if Path(path).stem in name))
    form = ' Did you mean {}?'
    hint = form.format(longer) if longer else did_you_mean(Path(path).name, known, form)
    raise FileNotFoundError(f'config {path!r} does not exist.{hint}')


def shipped_configs() -> dict[str, str]:
    """Find the configs that are installed with the project; returns the files by their names."""
    return {file.name: str(file) for file in (PACKAGE / '.mim/configs').glob('[!_]*/*.py')}


@contextmanager
def _as_config_error(what: str) -> Iterator[None]:
    """Take for the config's fault what the program that a config is ends with."""
    try:
        yield
    except (CoopError, OSError):
        raise
    except Exception as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ConfigError(f'{what}: {type(error).__name__}: {text}') from error


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` words the way mmengine's tools do.

    Args:
        words: The words, such as ``'train_dataloader.batch_size=2'``.

    Returns:
        The values by key.

    Examples:
        >>> from mmseg_coop.config.load import parse_options
        >>> parse_options(['a.b=2', 'c=(1,x)'])
        {'a.b': 2, 'c': (1, 'x')}
    """
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction)
    return dict(parser.parse_args(['--options', *words]).options)


def image_size(cfg: Config) -> tuple[int, int]:
    """Size of the images that a model is trained on.

    Args:
        cfg: Config.

    Returns:
        Height and width, ``crop_size``, or else ``size`` of the data preprocessor.

    Raises:
        ConfigError: The config has neither.
    """
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    size = cfg.get('crop_size') or preprocessor.get('size')
    if size is None:
        raise ConfigError(
            'the config says no size of images: it has neither crop_size nor '
            'model.data_preprocessor.size, each (height, width); add one or, where the tool takes '
            'it, give --size HxW.'
        )
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def forget_pretrained(model: dict[str, Any]) -> None:
    """Make a model config load no pretrained weights, in place.

    For tools that bring all weights with a checkpoint, or need none.

    Args:
        model: Config of a model.
    """
    init_cfg = model.get('init_cfg')
    if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
        model['init_cfg'] = None
    if model.get('pretrained'):  # older backbones of mmseg, and TIMMBackbone
        model['pretrained'] = False if model['pretrained'] is True else None
    if model.get('checkpoint_path'):  # TIMMBackbone's file
        model['checkpoint_path'] = ''
    for value in model.values():
        if isinstance(value, dict):
            forget_pretrained(value)
