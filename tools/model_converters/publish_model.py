"""Make a file to hand on from a training checkpoint.

Keeps the weights and the classes, drops the optimizer, the schedulers, the records and the config
with its paths. The file's name ends in the first 8 digits of its SHA-256, so that a damaged
download shows. Nothing that lies in the checkpoint is run.

    publish_model.py work_dirs/run/best_mIoU_iter_88000.pth cross-coop.pth
    -> cross-coop-1a2b3c4d.pth

A .pth file is for load_from, init_cfg, test.py and mmseg's inferencers; it loads with
torch.load(..., weights_only=True). A .safetensors file holds the same tensors, and the classes as
JSON under "dataset_meta" of its metadata.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmseg_coop.engine.safe_checkpoint import load_checkpoint_data
from mmseg_coop_cli import short_errors

SUFFIXES = ('.pth', '.safetensors')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='checkpoint of a training')
    parser.add_argument('destination', type=Path, help='NAME.pth or NAME.safetensors')
    parser.add_argument('--force', action='store_true', help='replace a file that exists')
    args = parser.parse_args()
    if args.destination.suffix not in SUFFIXES:
        parser.error(
            f'the destination has to end in {" or ".join(SUFFIXES)}, not {str(args.destination)!r}'
        )
    return args


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and classes of a checkpoint.

    Args:
        path: The checkpoint.

    Returns:
        The state dict, and what is known of the data set.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint, or its weights are not numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist.')
    checkpoint = load_checkpoint_data(path, 'cpu')
    weights = checkpoint.get('state_dict', checkpoint)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f'{str(path)!r} holds no weights under "state_dict".')
    broken = [
        name
        for name, value in weights.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise ValueError(
            f'{str(path)!r} has weights that are infinite or no number, {broken[0]!r} first; its '
            'training has diverged, publish an earlier checkpoint.'
        )
    meta = checkpoint.get('meta') or {}
    return weights, plain(meta.get('dataset_meta') or {})


def plain(value: Any) -> Any:
    """The same of dicts, lists, numbers and texts only, which JSON and every reader take."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.tolist()  # of numpy


def write(
    weights: dict[str, Tensor], dataset_meta: dict[str, Any], destination: Path, force: bool
) -> Path:
    """Write under a hidden name, and rename when the hash is known.

    Args:
        weights: The state dict.
        dataset_meta: What is known of the data set.
        destination: Name without the hash.
        force: Whether to replace a file.

    Returns:
        The file.

    Raises:
        FileExistsError: There is such a file.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f'.{destination.name}.{os.getpid()}.part')
    try:
        if destination.suffix == '.pth':
            torch.save(dict(meta=dict(dataset_meta=dataset_meta), state_dict=weights), part)
        else:
            from safetensors.torch import save_file

            save_file(weights, part, metadata=dict(dataset_meta=json.dumps(dataset_meta)))
        digest = hashlib.sha256(part.read_bytes()).hexdigest()[:8]
        final = destination.with_name(f'{destination.stem}-{digest}{destination.suffix}')
        if final.exists() and not force:
            raise FileExistsError(f'{str(final)!r} exists; add --force to replace it.')
        os.replace(part, final)
    finally:
        part.unlink(missing_ok=True)
    return final


def main() -> None:
    """Publish."""
    args = parse_args()
    with short_errors():
        weights, dataset_meta = read(args.source)
        for name, value in weights.items():
            # Contiguous and on its own: views would take what they are views of along.
            weights[name] = value.detach().clone(memory_format=torch.contiguous_format)
        final = write(weights, dataset_meta, args.destination, args.force)
    count = sum(value.numel() for value in weights.values())
    classes = dataset_meta.get('classes')
    print(f'{args.source}: {args.source.stat().st_size / 2**20:.1f} MiB')
    print(
        f'{final}: {final.stat().st_size / 2**20:.1f} MiB, {len(weights)} tensors, '
        f'{count / 1e6:.2f} M values, {len(classes) if classes else "no"} classes'
    )


if __name__ == '__main__':
    main()
