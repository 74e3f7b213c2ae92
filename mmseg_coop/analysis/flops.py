"""Counts parameters and multiply-accumulate operations of a model, by part."""

from __future__ import annotations

import json as json_
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..apis import build_model
from ..config import image_size, load_config
from ..models import DeepLabV3PlusHead
from ..models._channels import image_channels, skip_pointwise
from .report import claim
from .tables import markdown

#: Layers of DeepLabV3PlusHead by the part of the network that the papers count them to.
LAYERS = dict(
    aspp='ASPP',
    image_pool='ASPP',
    bottleneck='ASPP',
    low_level='decoder',
    decoder='decoder',
    conv_seg='decoder',
)


def get_flops(
    configs: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    json: str | None = None,
    force: bool = False,
    cfg_options: Mapping[str, Any] | Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Count models and print a table of each.

    Args:
        configs: Config files.
        size: Height and width of the image. Defaults to None: those of the training.
        json: File that is also written. Defaults to None.
        force: Whether to replace it. Defaults to False.
        cfg_options: Values that override those of all configs, see :func:`load_config`. Defaults to
            None.

    Returns:
        ``size``, and what :func:`count` returns as ``parts``, by name of the config.

    Raises:
        ConfigError: A config is at fault, or says no size.
        OSError: A file does not exist, or would be replaced.
    """
    claim(json, force=force)
    results = {}
    for path in configs:
        cfg = load_config(path, cfg_options=cfg_options)
        height, width = size or image_size(cfg)
        model = build_model(cfg)
        parts = count(model, (height, width))
        results[Path(path).stem] = dict(size=(height, width), parts=parts)
        rows = [['part', 'parameters (M)', 'GMAC']]
        rows += [[name, f'{p["params"]:.2f}', f'{p["gmac"]:.2f}'] for name, p in parts.items()]
        shape = f'1 x {image_channels(model)} x {height} x {width}'
        print(f'\n{Path(path).stem}, {shape}\n\n{markdown(rows, (1, 2))}')
    if json:
        Path(json).write_text(json_.dumps(results, indent=2) + '\n')
    return results


def count(model: nn.Module, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Count a model.

    Args:
        model: The segmentor.
        size: Height and width of the image.

    Returns:
        ``params`` in millions and ``gmac`` in billions of operations, by part, and ``total``.
    """
    model = skip_pointwise(model.to('meta').eval())
    parts: dict[str, dict[str, float]] = defaultdict(lambda: dict(params=0.0, gmac=0.0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        counted = 0
        running = ['']  # names of the modules that run at present, each inside the one before

        def credit() -> None:
            """Give what was counted since the last call to the innermost module that runs."""
            nonlocal counted
            now = counter.get_total_flops()
            if now > counted:
                part = part_of(running[-1], model) or 'other products'
                parts[part]['gmac'] += (now - counted) / 2e9
            counted = now

        def start(name: str) -> None:
            credit()
            running.append(name)

        def stop() -> None:
            credit()
            running.pop()

        for name, module in model.named_modules():
            if name:
                module.register_forward_pre_hook(lambda *_, name=name: start(name))
                module.register_forward_hook(lambda *_: stop())
        image = torch.empty(1, image_channels(model), *size, device='meta')
        model(image, mode='tensor')
        credit()
    # After the run, so that the parts come in the order in which they run.
    for name, parameter in model.named_parameters():
        parts[part_of(name, model)]['params'] += parameter.numel() / 1e6
    # Left out: containers of nothing, such as the networks that keep their normalisation.
    parts = {name: part for name, part in parts.items() if any(part.values())}
    params = sum(part['params'] for part in parts.values())
    return {**parts, 'total': dict(params=params, gmac=counted / 2e9)}


def part_of(name: str, model: nn.Module) -> str:
    """Part of the model that a module or a parameter of this dotted name belongs to."""
    root, *words = name.split('.')
    if root == 'decode_head' and words[:1] == ['cooperation']:
        return 'cooperative paths'
    network = words[1] if words[:1] == ['networks'] and words[1:] else ''
    layer = (words[2:] if network else words)[:1]
    if root == 'decode_head' and network and layer:
        head = model.get_submodule(f'decode_head.networks.{network}')
        if isinstance(head, DeepLabV3PlusHead):
            return f'{LAYERS.get(layer[0], layer[0])} {network}'
    return ' '.join(filter(None, (root, network, *(layer if root == 'decode_head' else ()))))
