"""Measures time and peak memory of models, side by side in one process, on synthetic images."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..apis.model import build_model
from ..apis.optimize import optimize_for_inference
from ..config import load_config
from ..engine.precision import half_precision
from ..errors import ConfigError
from ..models._channels import image_channels
from .measure import (
    describe,
    interleaved_seconds,
    median_ratio,
    most_expensive,
    peak_bytes,
    prepare,
)
from .tables import markdown

MODES = ('forward', 'train')


def give_networks(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give the config of a model other networks, copies of its own; ``names`` are old by new."""
    backbone, head = model['backbone'], model['decode_head']
    for part, key in ((backbone, 'networks'), (head, 'networks'), (backbone, 'normalize')):
        own = part.get(key) or {}
        part[key] = {new: copy.deepcopy(own[old]) for new, old in names.items() if old in own}
    model.get('test_cfg', {}).pop('output', None)
    model.pop('frozen', None)


class Subject:
    """A model, or a part of it, with what it needs to be run.

    Args:
        config: Config of the model, read.
        shape: Number, height and width of the images.
        device: Where it runs.
        part: Dotted name of the module that is run, on images. Defaults to None: the model.

    Raises:
        ConfigError: The model has no such part.
    """

    def __init__(
        self,
        config: Any,
        shape: tuple[int, int, int],
        *,
        device: torch.device,
        part: str | None = None,
    ) -> None:
        number, height, width = shape
        self.model: Any = build_model(config).to(device)
        self.part = part
        channels = image_channels(self.model)
        self.images = torch.rand(number, channels, height, width, device=device)
        try:
            module = self.model.get_submodule(part or '')
        except AttributeError as error:
            names = ', '.join(name for name, _ in self.model.named_children())
            raise ConfigError(
                f'--part {part!r} is no part of {type(self.model).__name__}, which has {names}.'
            ) from error
        self.num_parameters = sum(p.numel() for p in module.parameters())
        self.samples = []
        for _ in range(number):
            label = torch.randint(0, self.model.num_classes, (1, height, width), device=device)
            self.samples.append(SegDataSample(gt_sem_seg=PixelData(data=label)))

    def forward(self, **options: Any) -> Callable[[], Any]:
        """Make what runs the networks and heads without gradients.

        Args:
            **options: Of :func:`optimize_for_inference`; none leaves the model as it is.
        """
        model = self.model.eval()
        if any(options.values()):
            model = optimize_for_inference(copy.deepcopy(model), **options)
        module = model.get_submodule(self.part or '')
        words = dict(mode='tensor') if self.part is None else {}
        return torch.no_grad()(lambda: module(self.images, **words))

    def train(
        self, *, amp: str | None = None, channels_last: bool = False, compile: bool = False
    ) -> Callable[[], Tensor]:
        """Make what computes the loss, its gradient and an update of the weights.

        Args:
            amp: Half precision of the autocast, ``'auto'`` for float16 on a GPU and bfloat16 on a
                CPU. Defaults to None: float32.
            channels_last: Whether memory is laid out as NHWC. Defaults to False.
            compile: Whether to compile the model. Defaults to False.
        """
        model, images = self.model.train(), self.images
        if channels_last:
            model = copy.deepcopy(model).to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        kind = images.device.type
        amp = half_precision(kind) if amp == 'auto' else amp
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        module = model.get_submodule(self.part or '')
        run = torch.compile(module) if compile else module

        def objective() -> Tensor:
            if self.part is not None:
                return sum(x.float().mean() for x in tree_flatten(run(images))[0])
            return model.parse_losses(run(images, self.samples, mode='loss'))[0]

        def step() -> Tensor:
            with torch.autocast(kind, getattr(torch, amp)) if amp else nullcontext():
                loss = objective()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss

        return step


def benchmark(
    config: str,
    *,
    vs: Sequence[str] = (),
    part: str | None = None,
    modes: Sequence[str] = MODES,
    size: tuple[int, int] = (513, 513),
    batch_size: int = 2,
    repeats: int = 5,
    threads: int | None = None,
    device: str | None = None,
    optimize: bool = False,
    dtype: str | None = None,
    amp: str | None = None,
    channels_last: bool = False,
    compile: bool = False,
    profile: bool = False,
) -> None:
    """Measure models and print their times, peaks and ratios.

    The options of speed are those of the first model. It is then measured as it is as well, and so
    are those it is compared with: in float32, one operation after the other.

    Args:
        config: Config of the model.
        vs: Configs to compare it with. Defaults to none.
        part: Dotted name of a part to measure alone, such as ``'backbone'``. Defaults to None.
        modes: ``'forward'``, ``'train'`` or both. Defaults to both.
        size: Height and width of the images. Defaults to 513 x 513.
        batch_size: Images at a time. Defaults to 2.
        repeats: Timed rounds. Defaults to 5.
        threads: CPU threads. Defaults to None: torch's choice.
        device: Where the models run. Defaults to None: CUDA where there is one.
        optimize: Whether the forward pass is that of :func:`optimize_for_inference`. Defaults to
            False.
        dtype: What the forward pass computes in. Defaults to None: float32.
        amp: See :meth:`Subject.train`.
        channels_last: Whether memory is laid out as NHWC. Defaults to False.
        compile: Whether to compile the model. Defaults to False.
        profile: Whether to print the five most expensive operators of the first model, with the
            options and without. Defaults to False.

    Raises:
        CoopError: A config is at fault, a model cannot be run at the size, there is no such device.
        OSError: A config does not exist.
    """
    place = prepare(device, threads)
    options: dict[str, dict[str, Any]] = dict(
        forward=dict(
            fuse=optimize, channels_last=optimize or channels_last, dtype=dtype, compile=compile
        ),
        train=dict(amp=amp, channels_last=channels_last, compile=compile),
    )
    chosen = any(value for mode in modes for value in options[mode].values())
    subjects: dict[str, Subject] = {}
    for path in (config, *vs):
        subject = Subject(load_config(path), (batch_size, *size), device=place, part=part)
        if chosen and not subjects:
            subjects[f'0: {Path(path).stem} with options'] = subject
        subjects[f'{len(subjects)}: {Path(path).stem}'] = subject
    first, *others = subjects
    rows = [['model', 'parameters (M)']]
    rows += [[name, f'{subject.num_parameters / 1e6:.2f}'] for name, subject in subjects.items()]
    ratios = [['time', f'{first} by', 'ratio']]
    profiles = [['operators', 'share', 'operator', 'shapes']]
    for mode in modes:
        title = 'forward' if mode == 'forward' else 'train step'
        functions = {
            name: getattr(subject, mode)(**(options[mode] if name == first else {}))
            for name, subject in subjects.items()
        }
        seconds = interleaved_seconds(functions, repeats=repeats, device=place)
        rows[0] += [f'{title} (ms)', f'{title} peak (MiB)']
        for row, (name, function) in zip(rows[1:], functions.items(), strict=True):
            row.append(f'{statistics.median(seconds[name]) * 1000:.1f}')
            row.append(f'{peak_bytes(function, place) / 2**20:.0f}')
        peers = others[1:] if chosen else others
        for rivals in [*([name] for name in others), *([peers] if len(peers) > 1 else [])]:
            ratio = median_ratio(seconds[first], *(seconds[name] for name in rivals))
            ratios.append([title, ' + '.join(rivals), f'{ratio:.3f}'])
        for name in list(subjects)[: 1 + chosen] if profile else ():
            for key, shapes, share in most_expensive(functions[name], place):
                profiles.append([f'{title}, {name}', f'{share:.1%}', key, shapes])
    settings = [f'{k}={v}' for mode in modes for k, v in options[mode].items() if v]
    print(
        f'{" x ".join(map(str, subjects[first].images.shape))}, median of {repeats} rounds'
        f'{", options: " if settings else ""}{" ".join(dict.fromkeys(settings))}\n'
        f'{describe(place)}\n'
    )
    tables = (rows, ratios if others else [], profiles if profile else [])
    print('\n\n'.join(markdown(table) for table in tables if table))
