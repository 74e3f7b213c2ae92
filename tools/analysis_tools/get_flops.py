"""Parameters and multiply-accumulate operations of a model, by part, at a stated input size.

Counts the matrix products and convolutions of one forward pass on one image, as torch's own counter
does (a multiply-accumulate is two of its operations). Nothing is computed: the model runs on the
meta device.

Parts are the backbone, of every network its own, the layers of the head and the cooperative paths.
ASPP ends with its output, the convolution behind its branches; the decoder with the classifier.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmseg_coop.analysis.report import claim
from mmseg_coop.config import forget_pretrained, image_size, load_config
from mmseg_coop.models import DeepLabV3PlusHead
from mmseg_coop_cli import short_errors

#: Layers of DeepLabV3PlusHead by the part of the network that the papers count them to.
LAYERS = dict(
    aspp='ASPP',
    image_pool='ASPP',
    bottleneck='ASPP',
    low_level='decoder',
    decoder='decoder',
    conv_seg='decoder',
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='configs of models')
    parser.add_argument(
        '--size', metavar='HxW', help='size of the image; default: that of the training'
    )
    parser.add_argument(
        '--json', type=Path, metavar='FILE', help='also write the figures to this file'
    )
    parser.add_argument('--force', action='store_true', help='replace a file that exists')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override values of all configs',
    )
    return parser.parse_args()


def part_of(name: str, model: nn.Module) -> str:
    """Part of the model that a module or a parameter belongs to.

    Args:
        name: Its dotted name.
        model: The segmentor.
    """
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
        model(torch.empty(1, 3, *size, device='meta'), mode='tensor')
        credit()
    # After the run, so that the parts come in the order in which they run.
    for name, parameter in model.named_parameters():
        parts[part_of(name, model)]['params'] += parameter.numel() / 1e6
    # Left out: containers of nothing, such as the networks that keep their normalisation.
    parts = {name: part for name, part in parts.items() if any(part.values())}
    total = counted / 2e9
    params = sum(part['params'] for part in parts.values())
    return {**parts, 'total': dict(params=params, gmac=total)}


def read_size(text: str | None, cfg: Config) -> tuple[int, int]:
    """Size of the image from the command line, or that of the training."""
    if text is None:
        return image_size(cfg)
    try:
        height, width = (int(side) for side in text.split('x'))
        if min(height, width) < 1:
            raise ValueError
    except ValueError:
        raise ValueError(f'--size takes HEIGHTxWIDTH such as 513x513, not {text!r}.') from None
    return height, width


def main() -> None:
    """Count and print."""
    args = parse_args()
    if args.json:
        with short_errors():
            claim(args.json, force=args.force)
    results = {}
    for path in args.configs:
        with short_errors():
            cfg = load_config(path, cfg_options=args.cfg_options)
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
        args.json.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    main()
