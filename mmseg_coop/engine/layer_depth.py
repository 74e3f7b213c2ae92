"""How deep a backbone's parameters lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import timm
import torch
from mmseg.models.backbones import BEiT, SwinTransformer, VisionTransformer
from timm.models._manipulate import MATCH_PREV_GROUP, group_with_matcher
from torch import nn

_Matcher = dict[str, Any] | Callable[..., Any]
#: Layers of mmseg's own transformers, in the form of timm's ``group_matcher``.
_STEM = r'^(?:patch_embed|absolute_pos_embed|pos_embed|cls_token|mask_token)'
_VIT: _Matcher = dict(stem=_STEM, blocks=r'^layers\.(\d+)')
_SWIN: _Matcher = dict(
    stem=_STEM,
    blocks=[
        (r'^stages\.(\d+)\.blocks\.(\d+)', None),
        (r'^stages\.(\d+)\.downsample', MATCH_PREV_GROUP),
    ],
)


def layers_to_head(backbone: nn.Module) -> dict[str, int] | None:
    """Count the layers from each parameter of a backbone up to the head.

    Stem and every block are a layer. The last block is 1 below the head; norms of the outputs are
    at the head's level, 0, but with timm, where they belong to the last block. It is asked:

    - the backbone, if it has ``get_layer_depth(name) -> (depth, layers)``, as mmpretrain's have
      (ConvNeXt, Swin, ViT and others; ConvNeXt takes three blocks of its third stage for one layer,
      as BEiT's authors do);
    - timm's ``group_matcher`` of the model, for ``TIMMBackbone``;
    - the names in mmseg's ``SwinTransformer``, ``VisionTransformer``, ``BEiT`` and ``MAE``.

    Args:
        backbone: The backbone.

    Returns:
        Number of layers by the parameter's name; None if its layers are not known.
    """
    names = [name for name, _ in backbone.named_parameters()]
    depth_of = getattr(backbone, 'get_layer_depth', None)
    if callable(depth_of):
        depths = {name: depth_of(name) for name in names}
        return {name: layers - 1 - depth for name, (depth, layers) in depths.items()}
    if hasattr(backbone, 'timm_model'):
        return _of_timm(backbone.timm_model)
    if not isinstance(backbone, (BEiT, SwinTransformer, VisionTransformer)):
        return None
    matcher = _SWIN if isinstance(backbone, SwinTransformer) else _VIT
    layers = _grouped([*names, 'head'], matcher)
    return {name: layers['head'] - layers[name] for name in names}


def _of_timm(features: Any) -> dict[str, int] | None:
    """Of a model that gives features, whose parameters are those of the full one, renamed."""
    full = getattr(features, 'model', features)
    if not hasattr(full, 'group_matcher'):  # what gives features has it no more
        with torch.device('meta'), torch.random.fork_rng(devices=[]):
            full = timm.create_model(features.pretrained_cfg['architecture'])
    if not hasattr(full, 'group_matcher'):
        return None
    names = {name: _full_name(name, full) for name, _ in features.named_parameters()}
    layers = _grouped(names.values(), full.group_matcher(coarse=False))
    last = max(layers.values())
    return {f'timm_model.{name}': last + 1 - layers[names[name]] for name in names}


def _full_name(name: str, full: nn.Module) -> str:
    """Give the name in the full model: timm flattens its stages, ``stages.0`` to ``stages_0``."""
    part, _, rest = name.removeprefix('model.').partition('.')
    if not hasattr(full, part):
        part = '.'.join(part.rsplit('_', 1))
    return f'{part}.{rest}'


def _grouped(names: Iterable[str], matcher: _Matcher) -> dict[str, int]:
    """Number of its layer by name, from the image on; names that do not match are in the last."""
    return group_with_matcher(((name, None) for name in names), matcher, reverse=True)
