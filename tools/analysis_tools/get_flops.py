"""Parameters and multiply-accumulate operations of a model, by part, at a stated input size.

Counts the matrix products and convolutions of one forward pass on one image, as torch's own counter
does (a multiply-accumulate is two of its operations). Nothing is computed: the model runs on the
meta device.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmseg_coop.utils import forget_pretrained, load_config, short_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='configs of models')
    parser.add_argument(
        '--size', metavar='HxW', help='size of the image; default: the training crop of the config'
    )
    parser.add_argument('--json', metavar='FILE', help='also write the figures to this file')
    return parser.parse_args()


def part_of(name: str) -> str:
    """Part of the model that a module belongs to, from its dotted name."""
    words = name.split('.')
    if words[:2] in (['backbone', 'networks'], ['decode_head', 'networks']):
        return f'{words[0]} {words[2]}'
    if words[:2] == ['decode_head', 'cooperation']:
        return 'cooperative paths'
    return words[0]


def count(model: nn.Module, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Count a model.

    Args:
        model: The segmentor.
        size: Height and width of the image.

    Returns:
        ``params`` in millions and ``gmac`` in billions of operations, by part, and ``total``.
    """
    model = model.to('meta').eval()
    parts: dict[str, dict[str, float]] = defaultdict(lambda: dict(params=0.0, gmac=0.0))
    for name, parameter in model.named_parameters():
        parts[part_of(name)]['params'] += parameter.numel() / 1e6
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        running: list[int] = []

        def start(*_: object) -> None:
            running.append(counter.get_total_flops())

        def stop(part: str) -> None:
            parts[part]['gmac'] += (counter.get_total_flops() - running.pop()) / 2e9

        layers = {name: module for name, module in model.named_modules() if name}
        for name, module in layers.items():
            if next(module.children(), None) is None:
                module.register_forward_pre_hook(start)
                part = part_of(name)
                module.register_forward_hook(lambda *_, part=part: stop(part))
        model(torch.empty(1, 3, *size, device='meta'), mode='tensor')
        total = counter.get_total_flops() / 2e9
    # Left out: containers of nothing, such as the networks that keep their normalisation.
    parts = {name: part for name, part in parts.items() if any(part.values())}
    inside = sum(part['gmac'] for part in parts.values())
    if total - inside > 1e-6:  # products that no layer holds, such as those of attention maps
        parts['other products'] = dict(params=0.0, gmac=total - inside)
    params = sum(part['params'] for part in parts.values())
    return {**parts, 'total': dict(params=params, gmac=total)}


def read_size(text: str | None, cfg: dict) -> tuple[int, int]:
    """Size of the image from the command line, or the crop of the config."""
    if text is None:
        crop = cfg.get('crop_size')
        if crop is None:
            raise ValueError('the config has no crop_size; give --size HxW.')
        return int(crop[0]), int(crop[1])
    try:
        height, width = (int(side) for side in text.split('x'))
    except ValueError:
        raise ValueError(f'--size takes HEIGHTxWIDTH such as 513x513, not {text!r}.') from None
    return height, width


def main() -> None:
    """Count and print."""
    args = parse_args()
    results = {}
    for path in args.configs:
        with short_errors():
            cfg = load_config(path)
            size = read_size(args.size, cfg)
            init_default_scope(cfg.get('default_scope', 'mmseg'))
            forget_pretrained(cfg.model)
            model = MODELS.build(cfg.model)
        counts = count(model, size)
        results[Path(path).stem] = dict(size=size, parts=counts)
        print(f'\n{Path(path).stem}, 1 x 3 x {size[0]} x {size[1]}\n')
        print('| part | parameters (M) | GMAC |\n| --- | ---: | ---: |')
        for part, figures in counts.items():
            print(f'| {part} | {figures["params"]:.2f} | {figures["gmac"]:.2f} |')
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    main()
