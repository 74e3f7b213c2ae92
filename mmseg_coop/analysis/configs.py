"""Prints configs as the runner sees them, and their differences."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..config import load_config
from ..errors import ConfigError
from .report import claim


def print_config(
    config: str,
    *,
    key: str | None = None,
    diff: str | None = None,
    out: str | None = None,
    force: bool = False,
    cfg_options: Sequence[str] = (),
) -> bool:
    """Print or write a config: bases merged, options applied. A slip in it stays to be seen.

    Args:
        config: Config file.
        key: Print this part only: keys and indices of lists joined by dots. Defaults to None.
        diff: Config file; print only the lines in which it differs. Defaults to None.
        out: Config file to write instead. Defaults to None.
        force: Whether to replace it. Defaults to False.
        cfg_options: ``KEY=VALUE`` each. Defaults to none.

    Returns:
        Whether there is a difference.

    Raises:
        ConfigError: A file cannot be read as a config, or has no such key.
        OSError: A file does not exist, or would be replaced.
    """
    cfg = select(resolve(config, cfg_options), key)
    if out is not None:
        claim(out, force=force)
        cfg.dump(out)
        print(f'written to {out}')
        return False
    if diff is None:
        print(cfg.pretty_text)
        return False
    other = select(resolve(diff, cfg_options), key)
    one, two = (part.pretty_text.splitlines() for part in (cfg, other))
    lines = list(difflib.unified_diff(one, two, config, diff, n=2, lineterm=''))
    print('\n'.join(lines) or 'the configs do not differ')
    return bool(lines)


def resolve(path: str, options: Sequence[str] | None) -> Config:
    """Read a config; the work directory, which differs between all, stays as the file has it."""
    cfg = load_config(path, cfg_options=options, check=False)
    if cfg.work_dir == str(Path('work_dirs', Path(path).stem)):
        cfg.pop('work_dir')
    return cfg


def select(cfg: Config, key: str | None) -> Config:
    """Take the part of a config that keys and indices joined by dots name; None takes all."""
    if key is None:
        return cfg
    part: Any = cfg
    done: list[str] = []
    for word in key.split('.'):
        where = f'{".".join(done)!r}' if done else 'the config'
        is_list = isinstance(part, (list, tuple))
        if not is_list and not hasattr(part, 'keys'):
            raise ConfigError(f'--key {key}: {where} is the value {part!r} and has no parts.')
        known = list(map(str, range(len(part)))) if is_list else list(part.keys())
        if word not in known:
            raise ConfigError(f'--key {key}: {where} has no {word!r}, only {", ".join(known)}.')
        part = part[int(word) if is_list else word]
        done.append(word)
    return Config({'part' if done[-1].isdigit() else done[-1]: part})
