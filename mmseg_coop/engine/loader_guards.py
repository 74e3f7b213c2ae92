"""Guards around what mmengine and mmseg read, so that no checkpoint or weight file runs code."""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Callable
from typing import Any

import mmengine.registry
import mmengine.runner.checkpoint
import mmseg.models.losses.utils
import torch
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import CheckpointLoader

from ..errors import CheckpointError, printable
from .config_text import read_config
from .safe_checkpoint import SOURCES, TRUST_VARIABLE, load_checkpoint_data, refusal

_LOCK = threading.RLock()


def _guard(function: Callable[..., Any], guarded: Callable[..., Any]) -> Callable[..., Any]:
    """Call `guarded` with the function in front, unless the user trusts all files."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if os.environ.get(TRUST_VARIABLE) == '1':
            return function(*args, **kwargs)
        return guarded(function, *args, **kwargs)

    return call


def _load_as_data(loader: Callable[..., Any], filename: str, *args: Any, **kwargs: Any) -> Any:
    with _LOCK:
        previous = torch.load  # by which every loader reads the file that it has found
        torch.load = functools.partial(load_checkpoint_data, name=filename)
        try:
            checkpoint = loader(filename, *args, **kwargs)
        finally:
            torch.load = previous
    match checkpoint:
        case {'message_hub': {'runtime_info': {**info}}}:
            _check_deletions(info, filename)
    return checkpoint


def _check_deletions(info: dict[Any, Any], filename: str) -> None:
    """Refuse files that mmengine's hook would delete, and which are no best checkpoints."""
    harmless = re.compile(r'None|\[[\d, ]*\]|(.*[/\\])?best_[^/\\]*')
    for key, value in info.items():
        if re.match('best_ckpt|keep_ckpt_ids', str(key)) and not harmless.fullmatch(str(value)):
            raise refusal(filename, f'wants {value} deleted, which is no checkpoint')


def _parse_as_data(parse: Callable[[str, str], Config], cfg_str: str, file_format: str) -> Config:
    name = SOURCES.get(hash(cfg_str))
    if name is None:
        return parse(cfg_str, file_format)
    try:
        config = read_config(cfg_str)
        _check_names(config, *_registered())
    except ValueError as error:
        raise refusal(name, f'has a config that {error} (give one beside it)') from None
    return Config(config)


def refuse_code(config: dict[str, Any], name: str) -> None:
    """Refuse a config, come with weights, that names anything but registered classes.

    mmengine would import what it names, and call it.

    Args:
        config: The config.
        name: What the error calls it.

    Raises:
        CheckpointError: It names something else, and the user does not trust all files.
    """
    if os.environ.get(TRUST_VARIABLE) != '1':
        try:
            _check_names(config, *_registered())
        except ValueError as error:
            raise refusal(name, str(error)) from None


def _registered() -> tuple[set[str], set[str]]:
    """Names and scopes: mmengine imports what is asked for beyond them."""
    names, scopes = set(), set()
    for root in vars(mmengine.registry).values():
        for registry in (root, *root.children.values()) if isinstance(root, Registry) else ():
            registry.import_from_location()
            names.update(registry.module_dict)
            scopes.add(registry.scope)
    return names, scopes


def _check_names(value: Any, names: set[str], scopes: set[str]) -> None:
    allowed: dict[Any, set[str]] = {'_scope_': scopes, 'default_scope': scopes}
    allowed.update(type=names, norm_layer=names)  # the latter of TIMMBackbone
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(part, (dict, list, tuple)):
            _check_names(part, names, scopes)
        elif isinstance(part, str) and part not in allowed.get(key, {part}):
            raise ValueError(f'names {key}={part[:100]!r}, which is not registered')


def _load_weights_of_classes(load: Callable[..., Any], file: str, *args: Any, **kwargs: Any) -> Any:
    if not file.endswith('.json'):  # pickles and YAML run code
        raise CheckpointError(
            f'class_weight={printable(file)!r} may run code when it is read: give the numbers '
            'themselves, or the path of a .npy or .json file with them. If you trust the file, '
            f'set {TRUST_VARIABLE}=1 in the environment.'
        )
    return load(file, *args, **kwargs)


def guard_checkpoint_loaders() -> None:
    """Let mmengine, with loaders registered later too, and mmseg read checkpoints as data."""
    module, losses = mmengine.runner.checkpoint, mmseg.models.losses.utils
    find = CheckpointLoader._get_checkpoint_loader
    CheckpointLoader._get_checkpoint_loader = lambda path: _guard(find(path), _load_as_data)
    for name in [name for name in vars(module) if name.startswith('load_from_')]:
        setattr(module, name, _guard(getattr(module, name), _load_as_data))
    Config.fromstring = staticmethod(_guard(Config.fromstring, _parse_as_data))
    losses.load = _guard(losses.load, _load_weights_of_classes)
