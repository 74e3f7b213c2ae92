"""Print a config as the runner sees it: bases merged, options of the command line applied."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

# The standard output is for the config, but OneDL's packages print to it when they are imported.
with contextlib.redirect_stdout(sys.stderr):
    from mmseg_coop_cli import short_errors
from mmseg_coop.config import load_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--key', metavar='KEY', help='print this part only, e.g. model.decode_head')
    parser.add_argument(
        '--diff', metavar='CONFIG', help='print only the lines in which this other config differs'
    )
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help='write a config file (.py, .json, .yml) instead'
    )
    parser.add_argument('--force', action='store_true', help='replace a file that exists')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override values, as in train.py',
    )
    args = parser.parse_args()
    if args.out is not None and args.out.suffix not in ('.py', '.json', '.yml', '.yaml'):
        parser.error(f'--out takes a .py, .json, .yml or .yaml file, not {str(args.out)!r}')
    if args.out is not None and (args.key or args.diff):
        parser.error('--out writes the whole config; leave out --key and --diff')
    return args


def select(cfg: Config, key: str | None) -> Config:
    """Take a part of a config.

    Args:
        cfg: The config.
        key: Keys and indices of lists joined by dots; None takes everything.

    Raises:
        ValueError: There is no such key.
    """
    if key is None:
        return cfg
    part: Any = cfg
    done: list[str] = []
    for word in key.split('.'):
        where = f'{".".join(done)!r}' if done else 'the config'
        known: Iterable[str]
        if isinstance(part, (list, tuple)):
            known = map(str, range(len(part)))
        elif hasattr(part, 'keys'):
            known = part.keys()
        else:
            raise ValueError(f'--key {key}: {where} is the value {part!r} and has no parts.')
        known = list(known)
        if word not in known:
            raise ValueError(f'--key {key}: {where} has no {word!r}, only {", ".join(known)}.')
        part = part[int(word)] if isinstance(part, (list, tuple)) else part[word]
        done.append(word)
    return Config({done[-1] if not done[-1].isdigit() else 'part': part})


def resolve(path: str, args: argparse.Namespace) -> Config:
    """Read a config; the work directory, which differs between all, stays as the file has it."""
    given = Config.fromfile(path).get('work_dir') if Path(path).is_file() else None
    # Unchecked: a config with a slip has to be seen, too.
    cfg = load_config(path, cfg_options=args.cfg_options, check=False)
    if given is None and 'work_dir' not in (args.cfg_options or {}):
        cfg.pop('work_dir')
    return cfg


def main() -> None:
    """Print."""
    args = parse_args()
    with short_errors():
        cfg = select(resolve(args.config, args), args.key)
        other = select(resolve(args.diff, args), args.key) if args.diff else None
        if args.out is not None:
            if args.out.exists() and not args.force:
                raise FileExistsError(f'{str(args.out)!r} exists; add --force to replace it.')
            args.out.parent.mkdir(parents=True, exist_ok=True)
            cfg.dump(args.out)
            print(f'written to {args.out}')
            return
    if other is None:
        print(cfg.pretty_text)
        return
    lines = difflib.unified_diff(
        cfg.pretty_text.splitlines(),
        other.pretty_text.splitlines(),
        args.config,
        args.diff,
        n=2,
        lineterm='',
    )
    text = '\n'.join(lines)
    print(text or 'the configs do not differ')
    sys.exit(1 if text else 0)


if __name__ == '__main__':
    main()
