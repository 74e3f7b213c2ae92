"""Makes files of weights from files of weights: other names, or nothing but what is handed on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.hooks.checkpoint_hook import write_atomically
from ..engine.safe_checkpoint import load_checkpoint_data
from ..errors import CheckpointError
from .model import refuse_existing, require_file

StateDict = Mapping[str, Tensor]


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    convert: Callable[[StateDict], StateDict],
    *,
    force: bool = False,
) -> None:
    """Read a file of weights, convert them, write them as float32 and print the counts.

    Args:
        source: A ``.pth`` or ``.safetensors`` file.
        destination: The ``.pth`` file to write.
        convert: Makes the new state dict; raises :class:`CheckpointError` where the old one is not
            what it expects.
        force: Whether to replace a file. Defaults to False.

    Raises:
        FileExistsError: The destination exists, without ``force``.
        CheckpointError: The source carries code, is damaged or holds other weights.
        OSError: A file cannot be read or written.
    """
    destination = Path(destination)
    _check_suffix(destination, '.pth')
    refuse_existing(destination, force=force)
    weights, _ = read_weights(source)
    try:
        converted = convert(weights)
    except CheckpointError as error:
        raise CheckpointError(f'cannot convert {str(source)!r}: {error}') from error
    # Integers, such as num_batches_tracked, stay integers.
    converted = {k: v.float() if v.is_floating_point() else v for k, v in converted.items()}
    write_atomically(as_pth(converted), destination)
    values = sum(value.numel() for value in converted.values())
    left_out = len(weights) - len(converted)
    print(f'{source}: {len(weights)} tensors read, {left_out} left out')
    print(f'{destination}: {len(converted)} tensors written, {values / 1e6:.2f} M values')


def publish_checkpoint(source: str | Path, destination: str | Path, *, force: bool = False) -> Path:
    """Keep the weights and the classes of a checkpoint, in a file that is named after its hash.

    Args:
        source: Checkpoint of a training.
        destination: ``NAME.pth`` or ``NAME.safetensors``. The first 8 digits of the file's SHA-256
            go behind the name.
        force: Whether to replace a file. Defaults to False.

    Returns:
        The file.

    Raises:
        FileExistsError: There is such a file, without ``force``.
        CheckpointError: The source carries code, is damaged, holds no weights or some that are no
            numbers.
        OSError: A file cannot be read or written.
    """
    destination = Path(destination)
    _check_suffix(destination, '.pth', '.safetensors')
    weights, meta = read_weights(source)
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f'{str(source)!r} has weights that are infinite or no number, {name!r} first; its '
                'training has diverged, publish an earlier checkpoint.'
            )
    # Contiguous and on their own: views would take what they are views of along.
    kind = torch.contiguous_format
    weights = {name: value.detach().clone(memory_format=kind) for name, value in weights.items()}
    dataset_meta = as_plain(meta.get('dataset_meta') or {})
    if destination.suffix == '.pth':
        data = as_pth(dict(meta=dict(dataset_meta=dataset_meta), state_dict=weights))
    else:
        from safetensors.torch import save

        data = save(weights, metadata=dict(dataset_meta=json.dumps(dataset_meta)))
    digest = hashlib.sha256(data).hexdigest()[:8]
    file = destination.with_name(f'{destination.stem}-{digest}{destination.suffix}')
    refuse_existing(file, force=force)
    write_atomically(data, file)
    classes = dataset_meta.get('classes')
    values = sum(value.numel() for value in weights.values())
    print(f'{source}: {Path(source).stat().st_size / 2**20:.1f} MiB')
    print(
        f'{file}: {len(data) / 2**20:.1f} MiB, {len(weights)} tensors, {values / 1e6:.2f} M '
        f'values, {len(classes) if classes else "no"} classes'
    )
    return file


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of weights without running code from it.

    Args:
        path: A ``.safetensors`` file, or one of torch, in which the state dict may lie under
            ``state_dict`` or ``model``.

    Returns:
        The state dict, and what lies under ``meta`` beside it.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It carries code, is damaged or holds no state dict.
    """
    require_file(str(path))
    content: Any = load_checkpoint_data(path, 'cpu')
    meta = content.get('meta') if isinstance(content, dict) else None
    for key in ('state_dict', 'model'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not (isinstance(content, dict) and content and all(map(torch.is_tensor, content.values()))):
        raise CheckpointError(
            f'{str(path)!r} holds no weights, neither at its top nor under "state_dict" or "model".'
        )
    return content, meta if isinstance(meta, dict) else {}


def _check_suffix(file: Path, *suffixes: str) -> None:
    if file.suffix not in suffixes:
        raise CheckpointError(
            f'the destination has to end in {" or ".join(suffixes)}, not {str(file)!r}; rename it.'
        )


def as_pth(content: Mapping[str, Any]) -> bytes:
    """Write what torch reads from a file into memory."""
    stream = io.BytesIO()
    torch.save(dict(content), stream)
    return stream.getvalue()


def as_plain(value: Any) -> Any:
    """The same of dicts, lists, numbers and texts only, which JSON and every reader take."""
    if isinstance(value, dict):
        return {str(key): as_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.tolist()  # of numpy
