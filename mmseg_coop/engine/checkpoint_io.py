"""What the converters of this folder share: the command line, reading, checking and writing."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the command line that all converters have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='checkpoint to convert: .pth or .safetensors')
    parser.add_argument('destination', type=Path, help='file to write: .pth')
    parser.add_argument('--force', action='store_true', help='overwrite the destination')
    return parser


def fail(message: str) -> NoReturn:
    """End the program with a one-line error and exit code 1."""
    sys.exit(f'error: {" ".join(message.split())}')


def run(args: argparse.Namespace, convert: Callable[[StateDict], dict[str, Tensor]]) -> None:
    """Read the source, convert it, write the destination as float32 and print the counts.

    Args:
        args: The arguments that :func:`make_parser` declares, parsed.
        convert: Makes the new state dict; raises ValueError if the source is not what it expects.
    """
    source, destination = args.source, args.destination
    if destination.suffix != '.pth':
        fail(f'{destination} does not end in .pth, the only format written; rename it')
    if destination.exists() and not args.force:
        fail(f'{destination} exists; add --force to overwrite it, or name another file')
    state_dict = read_state_dict(source)
    try:
        converted = convert(state_dict)
    except ValueError as error:
        fail(f'cannot convert {source}: {error}')
    # Integers, such as num_batches_tracked, stay integers.
    converted = {k: v.float() if v.is_floating_point() else v for k, v in converted.items()}
    write_state_dict(converted, destination)
    values = sum(value.numel() for value in converted.values())
    left_out = len(state_dict) - len(converted)
    print(f'{source}: {len(state_dict)} tensors read, {left_out} left out')
    print(f'{destination}: {len(converted)} tensors written, {values / 1e6:.2f} M values')


def read_state_dict(path: Path) -> StateDict:
    """Read a state dict, which may lie under ``state_dict`` or ``model``, without running code."""
    if not path.is_file():
        fail(f'{path} is not a file; give the checkpoint to convert')
    content: Any
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # the readers raise whatever a damaged file makes them stumble on
        reason = f'{type(error).__name__}: {error}'
        if isinstance(error, pickle.UnpicklingError):
            reason = 'it is damaged, or holds more than tensors, which is refused'
        fail(f'cannot read {path} as a .pth or .safetensors file of weights; {reason}')
    for key in ('state_dict', 'model'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        fail(f'{path} holds no state dict, neither at its top nor under "state_dict" or "model"')
    return content


def write_state_dict(state_dict: StateDict, path: Path) -> None:
    """Write under a hidden name and rename, so that no half file bears the name ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        torch.save(dict(state_dict), part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_names_and_shapes(converted: StateDict, expected: StateDict) -> None:
    """Raise ValueError, naming them, if names or shapes differ from those of the target model."""
    problems = {
        'missing': [name for name in expected if name not in converted],
        'unexpected': [name for name in converted if name not in expected],
        'of another shape': [
            f'{name} {tuple(converted[name].shape)} instead of {tuple(expected[name].shape)}'
            for name in expected
            if name in converted and converted[name].shape != expected[name].shape
        ],
    }
    found = [
        f'{kind}: {", ".join(names[:5])}' + (f' and {len(names) - 5} more' if names[5:] else '')
        for kind, names in problems.items()
        if names
    ]
    if found:
        raise ValueError('the weights do not fit the target model: ' + '; '.join(found))
