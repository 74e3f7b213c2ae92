"""Takes one network out of a cooperative model, as a plain segmentor of mmseg."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmseg.models import BaseSegmentor
from torch import Tensor

from ..config import image_size, load_config
from ..config.parts import find_types, walk
from ..config.signatures import constructor_keys
from ..datasets import CamVidDataset, LoadSegAnnotations, LoadSegImage
from ..engine.hooks.checkpoint_hook import write_atomically
from ..errors import ConfigError, CoopError, did_you_mean
from ..evaluation import CoopIoUMetric
from ..models import CoopTTAModel, CrossCoopEncoderDecoder
from ..models._channels import image_channels
from ..visualization import CoopLocalVisualizer
from .convert import as_plain, as_pth
from .model import build_model, load_model, refuse_existing

#: What a config is about beside its model and its training.
_KEPT = (
    *('default_scope', 'env_cfg', 'log_level', 'log_processor', 'visualizer'),
    *('test_pipeline', 'test_dataloader', 'test_evaluator', 'test_cfg'),
    *('tta_pipeline', 'tta_model'),
)
#: Parts of ours that do for one network what the class of mmseg or mmcv does that they extend.
_LIKE_THEIR_BASES = (
    *(CamVidDataset, LoadSegAnnotations, LoadSegImage),
    *(CoopIoUMetric, CoopLocalVisualizer, CoopTTAModel),
)


def extract_network(
    config: str,
    checkpoint: str,
    *,
    network: str,
    out: str | Path,
    force: bool = False,
    cfg_options: Sequence[str] | None = None,
) -> tuple[Path, Path]:
    """Write config and checkpoint of a network that receives nothing from others.

    The model is an ``EncoderDecoder`` with the network's backbone, neck and decode head. The config
    has what a test needs beside it, and nothing of the training; auxiliary heads are left out.
    Where all parts are of mmseg, or may be replaced by such, it does without this project.

    Before anything is written the logits are compared. They are equal, bit by bit, unless the
    backbone has a normalisation of its own: this becomes the data preprocessor's, in place of an
    affine behind it, which rounds differently.

    Args:
        config: Config file.
        checkpoint: Checkpoint: a file, or an address that mmengine reads.
        network: Name of the network, which names the files as well.
        out: Folder.
        force: Whether to replace files. Defaults to False.
        cfg_options: Values that override the config's, see :func:`load_config`. Defaults to None.

    Returns:
        The config file and the checkpoint.

    Raises:
        ConfigError: There is no such network, it receives feature maps or reads channels of its
            own, or its backbone returns maps in a form that mmseg's heads do not take.
        CheckpointError: The weights do not fit the model.
        OSError: A file does not exist, or exists without ``force``.
    """
    files = Path(out, f'{network}.py'), Path(out, f'{network}.pth')
    refuse_existing(*files, force=force)
    cfg = load_config(config, cfg_options=cfg_options)
    kept = copy.deepcopy({key: cfg[key] for key in _KEPT if key in cfg})
    model = load_model(cfg, checkpoint)
    _check_network(model, network)
    kept.setdefault('test_pipeline', cfg.test_pipeline)  # which mmseg's interfaces read
    kept['model'] = _model_config(model, cfg.model, network)
    parts = {
        name: part.networks[network]
        for name, part in model.named_children()
        if name in ('backbone', 'neck', 'decode_head') and network in part.networks
    }
    weights = dict(torch.nn.ModuleDict(parts).state_dict())
    plain = revert_sync_batchnorm(build_model(Config(copy.deepcopy(kept)))).eval()
    plain.load_state_dict(weights)
    difference = _compare(model, plain, network, image_size(cfg))
    needed = sorted({part.__name__ for part in _ours(kept) if part not in _LIKE_THEIR_BASES})
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else imports
    imports = [name for name in imports if name != 'mmseg_coop']
    if needed:
        imports.insert(0, 'mmseg_coop')
    else:
        kept = _without_ours(kept)
    if imports:
        kept['custom_imports'] = dict(imports=imports, allow_failed_imports=False)

    head = f'# The network {network!r} of {Path(config).name}.\n'
    write_atomically((head + Config(kept).pretty_text).encode(), files[0])
    dataset_meta = as_plain(model.dataset_meta)
    content = dict(meta=dict(dataset_meta=dataset_meta), state_dict=weights)
    write_atomically(as_pth(content), files[1])
    why = f' ({", ".join(needed)})' if needed else ''
    print(f'{files[0]}: needs {", ".join(["mmseg", *reversed(imports)])}{why}')
    values = sum(value.numel() for value in weights.values())
    same = f'differ by up to {difference:.1e} through rounding' if difference else 'are equal'
    print(f'{files[1]}: {len(weights)} tensors, {values / 1e6:.2f} M values; logits {same}')
    return files


def _check_network(model: BaseSegmentor, network: str) -> None:
    if not isinstance(model, CrossCoopEncoderDecoder):
        raise ConfigError(f'the model, of type {type(model).__name__}, is one network already.')
    names = model.decode_head.network_names
    if network not in names:
        hint = did_you_mean(network, names) or '.'
        raise ConfigError(f'--network {network!r} is none of {", ".join(names)}{hint}')
    senders = model.decode_head.senders_to(network)
    if senders:
        raise ConfigError(
            f'network {network!r} receives feature maps from {", ".join(senders)}, without which '
            'it computes something else; it cannot be taken out. Train it with a topology in which '
            'it receives nothing; transfer lets it learn from the others.'
        )
    if network in model.backbone.inputs:
        raise ConfigError(
            f'network {network!r} reads the channels {model.backbone.inputs[network]} of an image, '
            'where a plain model of mmseg reads all; it cannot be taken out.'
        )


def _model_config(
    model: CrossCoopEncoderDecoder, cfg: Mapping[str, Any], network: str
) -> dict[str, Any]:
    """Config of the segmentor with one network."""
    preprocessor = dict(cfg.get('data_preprocessor') or {})
    preprocessor.update((cfg['backbone'].get('normalize') or {}).get(network, {}))
    test_cfg = {k: v for k, v in model.test_cfg.items() if k not in ('output', 'keep_logits')}
    parts = dict(
        type='EncoderDecoder',
        data_preprocessor=preprocessor or None,
        backbone=cfg['backbone']['networks'][network],
        decode_head=model.decode_head.configs[network],
        train_cfg=dict(),
        test_cfg=test_cfg,
    )
    if model.with_neck and network in model.neck.configs:
        parts['neck'] = model.neck.configs[network]
    return copy.deepcopy(parts)


@torch.no_grad()
def _compare(
    model: CrossCoopEncoderDecoder, plain: BaseSegmentor, network: str, size: tuple[int, int]
) -> float:
    """Largest difference between the logits of a network and of the segmentor made of it."""
    generator = torch.Generator().manual_seed(0)
    shape = (image_channels(model), *size)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    own, other = (
        each.data_preprocessor(dict(inputs=[image]), training=False)['inputs']
        for each in (model, plain)
    )
    levels, expected = plain.backbone(other), model.backbone(own)[network]
    shapes, wanted = ([tuple(x.shape) for x in each] for each in (levels, expected))
    if isinstance(levels, Tensor) or shapes != wanted:
        found = f'a bare map {tuple(levels.shape)}' if isinstance(levels, Tensor) else shapes
        raise ConfigError(
            f'the backbone of network {network!r} returns {found} where heads of mmseg take '
            f'{wanted}, into which CoopBackbone turns it; alone it does not work.'
        )
    logits, expected = plain(other), model(own)[network]
    difference = (logits - expected).abs().max().item()
    rounds = network in model.backbone.renormalize
    if difference > (1e-4 * max(1.0, expected.abs().max().item()) if rounds else 0):
        raise CoopError(
            f'the logits of network {network!r} alone differ by {difference:.2g}; a part of it '
            'works otherwise alone than in the model, or differently each time.'
        )
    return difference


def _ours(part: Any) -> Iterator[type]:
    """Classes of this project that a part of a config names."""
    for _, inner in walk(part, ''):
        for found in find_types(inner.get('type')):
            if found.__module__.startswith('mmseg_coop.'):
                yield found


def _without_ours(part: Any) -> Any:
    """Name in place of each class of ours the one that it extends, with what that takes."""
    if isinstance(part, (list, tuple)):
        return type(part)(map(_without_ours, part))
    if not isinstance(part, Mapping):
        return part
    changed = {
        key: _without_ours(value)
        for key, value in part.items()
        if (key, value) != ('_scope_', 'mmseg_coop')
    }
    for found in find_types(part.get('type')):
        if found in _LIKE_THEIR_BASES:
            base = found.__base__
            known = constructor_keys(base).known
            changed = {key: value for key, value in changed.items() if key in known}
            if hasattr(found, 'METAINFO'):
                changed = {'metainfo': dict(found.METAINFO), **changed}
            changed['type'] = base.__name__
    return changed
