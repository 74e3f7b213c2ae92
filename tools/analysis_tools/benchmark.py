"""Time and peak memory of models, side by side in one process, on synthetic images.

Prints a Markdown table of the forward pass and the training step (loss, backward, SGD) of every
config, and the ratio of the first to each of the others and to all of them together.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmseg_coop.analysis.measure import choose_device, interleaved_seconds, median_ratio, peak_bytes
from mmseg_coop.analysis.tables import markdown
from mmseg_coop.config import forget_pretrained, load_config
from mmseg_coop_cli import short_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the model')
    parser.add_argument(
        '--vs', nargs='+', default=[], metavar='CONFIG', help='configs to compare it with'
    )
    parser.add_argument(
        '--size', default='513x513', metavar='HxW', help='size of the images; default: 513x513'
    )
    parser.add_argument('--batch-size', type=int, default=2, help='images at a time; default: 2')
    parser.add_argument('--repeats', type=int, default=5, help='timed rounds; default: 5')
    parser.add_argument('--threads', type=int, help="CPU threads; default: torch's choice")
    parser.add_argument('--device', help='cpu, cuda or cuda:N; default: cuda where there is one')
    parser.add_argument('--channels-last', action='store_true', help='NHWC memory layout')
    parser.add_argument(
        '--amp', action='store_true', help='autocast: float16 on CUDA, bfloat16 on the CPU'
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile the models')
    args = parser.parse_args()
    try:
        height, width = (int(side) for side in args.size.split('x'))
        if min(height, width) < 1:
            raise ValueError
    except ValueError:
        parser.error(f'--size takes HEIGHTxWIDTH in pixels, such as 513x513, not {args.size!r}')
    args.size = height, width
    for name in ('batch_size', 'repeats', 'threads'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name.replace("_", "-")} has to be at least 1, not {value}')
    return args


class Subject:
    """A model with what it needs to be run.

    Args:
        path: Config.
        args: The command line.
        device: Where it runs.
    """

    def __init__(self, path: str, args: argparse.Namespace, device: torch.device) -> None:
        cfg = load_config(path)
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        forget_pretrained(cfg.model)
        self.name = Path(path).stem
        model: nn.Module = MODELS.build(cfg.model).to(device)
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        height, width = args.size
        self.images = torch.rand(args.batch_size, 3, height, width, device=device)
        if args.channels_last:
            model = model.to(memory_format=torch.channels_last)
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.samples = []
        for _ in range(args.batch_size):
            label = torch.randint(0, model.num_classes, (1, height, width), device=device)
            self.samples.append(SegDataSample(gt_sem_seg=PixelData(data=label)))
        self.parse_losses = model.parse_losses
        self.model = torch.compile(model) if args.compile else model
        amp_dtype = torch.float16 if device.type == 'cuda' else torch.bfloat16
        self.autocast: Callable[[], Any] = (
            (lambda: torch.autocast(device.type, amp_dtype)) if args.amp else nullcontext
        )

    def forward(self) -> Any:
        """Run the networks and heads without gradients."""
        self.model.eval()
        with torch.inference_mode(), self.autocast():
            return self.model(self.images, mode='tensor')

    def train_step(self) -> Tensor:
        """Compute the loss, its gradient and an update of the weights."""
        self.model.train()
        with self.autocast():
            losses = self.model(self.images, self.samples, mode='loss')
        loss, _ = self.parse_losses(losses)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss


def mebibytes(count: int | None) -> str:
    """Bytes for the table."""
    return 'n/a' if count is None else f'{count / 2**20:.0f}'


def main() -> None:
    """Measure and print."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with short_errors():
        device = choose_device(args.device)
        subjects = [Subject(path, args, device) for path in (args.config, *args.vs)]

    where = torch.cuda.get_device_name(device) if device.type == 'cuda' else (
        f'CPU, {torch.get_num_threads()} threads'
    )  # fmt: skip
    options = [name for name in ('channels_last', 'amp', 'compile') if getattr(args, name)]
    print(
        f'{args.batch_size} x 3 x {args.size[0]} x {args.size[1]}, {where}, torch '
        f'{torch.__version__}, median of {args.repeats} rounds {" ".join(options)}\n'
    )
    keys = [f'{index}: {subject.name}' for index, subject in enumerate(subjects)]
    columns, ratios = {}, []
    for title, run in (('forward', Subject.forward), ('train step', Subject.train_step)):
        functions = {k: (lambda s=s, run=run: run(s)) for k, s in zip(keys, subjects, strict=True)}
        with short_errors():  # models refuse a batch or a size that is too small
            seconds = interleaved_seconds(functions, repeats=args.repeats, device=device)
        columns[title] = {
            key: (statistics.median(seconds[key]), peak_bytes(functions[key], device))
            for key in keys
        }
        peers = [[key] for key in keys[1:]] + ([keys[1:]] if len(keys) > 2 else [])
        for others in peers:
            ratio = median_ratio(seconds[keys[0]], *(seconds[key] for key in others))
            ratios.append([title, ' + '.join(others), f'{ratio:.3f}'])

    rows = [
        [
            'model',
            'parameters (M)',
            *('forward (ms)', 'forward peak (MiB)'),
            *('train step (ms)', 'train step peak (MiB)'),
        ]
    ]
    for key, subject in zip(keys, subjects, strict=True):
        row = [key, f'{subject.num_parameters / 1e6:.2f}']
        for title in ('forward', 'train step'):
            median, peak = columns[title][key]
            row += [f'{median * 1000:.1f}', mebibytes(peak)]
        rows.append(row)
    print(markdown(rows))
    if ratios:
        print('\n' + markdown([['time', f'{keys[0]} by', 'ratio'], *ratios]))


if __name__ == '__main__':
    main()
