"""Measures time and peak memory of models, side by side in one process, on synthetic images."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from ..apis.model import build_model, choose_device
from ..config import load_config
from .measure import describe, interleaved_seconds, median_ratio, peak_bytes
from .tables import markdown


class Subject:
    """A model with what it needs to be run.

    Args:
        path: Config.
        shape: Number, height and width of the images.
        device: Where it runs.
        channels_last: Whether memory is laid out as NHWC.
        amp: Whether to autocast.
        compile: Whether to compile the model.
    """

    def __init__(
        self,
        path: str,
        shape: tuple[int, int, int],
        *,
        device: torch.device,
        channels_last: bool,
        amp: bool,
        compile: bool,
    ) -> None:
        number, height, width = shape
        model: Any = build_model(load_config(path)).to(device)
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        self.images = torch.rand(number, 3, height, width, device=device)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.samples = []
        for _ in range(number):
            label = torch.randint(0, model.num_classes, (1, height, width), device=device)
            self.samples.append(SegDataSample(gt_sem_seg=PixelData(data=label)))
        self.parse_losses = model.parse_losses
        self.model: Any = torch.compile(model) if compile else model
        amp_dtype = torch.float16 if device.type == 'cuda' else torch.bfloat16
        self.autocast: Callable[[], Any] = (
            (lambda: torch.autocast(device.type, amp_dtype)) if amp else nullcontext
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
        loss: Tensor = self.parse_losses(losses)[0]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss


def benchmark(
    config: str,
    *,
    vs: Sequence[str] = (),
    size: tuple[int, int] = (513, 513),
    batch_size: int = 2,
    repeats: int = 5,
    threads: int | None = None,
    device: str | None = None,
    **options: bool,
) -> None:
    """Measure models and print their times, peaks and ratios.

    Args:
        config: Config of the model.
        vs: Configs to compare it with. Defaults to none.
        size: Height and width of the images. Defaults to 513 x 513.
        batch_size: Images at a time. Defaults to 2.
        repeats: Timed rounds. Defaults to 5.
        threads: CPU threads. Defaults to None: torch's choice.
        device: Where the models run. Defaults to None: CUDA where there is one.
        **options: ``channels_last``, ``amp`` and ``compile``, see :class:`Subject`.

    Raises:
        CoopError: A config is at fault, a model cannot be run at the size, there is no such device.
        OSError: A config does not exist.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    place = choose_device(device)
    subjects = {
        f'{index}: {Path(path).stem}': Subject(path, (batch_size, *size), device=place, **options)
        for index, path in enumerate((config, *vs))
    }
    print(
        f'{batch_size} x 3 x {size[0]} x {size[1]}, {describe(place)}, median of {repeats} rounds '
        f'{" ".join(name for name, chosen in options.items() if chosen)}\n'
    )
    rows = [['model', 'parameters (M)']]
    rows += [[name, f'{subject.num_parameters / 1e6:.2f}'] for name, subject in subjects.items()]
    first, *others = subjects
    ratios = [['time', f'{first} by', 'ratio']]
    for title, attribute in (('forward', 'forward'), ('train step', 'train_step')):
        functions = {name: getattr(subject, attribute) for name, subject in subjects.items()}
        seconds = interleaved_seconds(functions, repeats=repeats, device=place)
        rows[0] += [f'{title} (ms)', f'{title} peak (MiB)']
        for row, (name, function) in zip(rows[1:], functions.items(), strict=True):
            row.append(f'{statistics.median(seconds[name]) * 1000:.1f}')
            row.append(f'{peak_bytes(function, place) / 2**20:.0f}')
        for rivals in [*([name] for name in others), *([others] if len(others) > 1 else [])]:
            ratio = median_ratio(seconds[first], *(seconds[name] for name in rivals))
            ratios.append([title, ' + '.join(rivals), f'{ratio:.3f}'])
    print(markdown(rows))
    if others:
        print('\n' + markdown(ratios))
