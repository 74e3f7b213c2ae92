"""Measures the cost of attentions, ours and what they replace, side by side in one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import NonLocal2d
from mmseg.models.decode_heads.ann_head import APNB
from mmseg.models.decode_heads.da_head import CAM, PAM
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from ..errors import ConfigError
from ..models.attentions import ChannelPoolAttention, SpatialPoolAttention
from .measure import describe, interleaved_seconds, median_ratio, peak_bytes, prepare
from .tables import markdown


class LiteralSPA(nn.Module):
    """SPA as section 3.2 spells it out: project the map, pool every level, attend, scale, add."""

    def __init__(self, channels: int, convolutions: bool = True) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Conv2d(channels, width, 1) if convolutions else nn.Identity()
            for width in (channels // 8, channels // 8, channels)
        )
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend; ``(N, C, H, W)`` in and out."""
        keys, values = (
            torch.cat([F.adaptive_avg_pool2d(source, n).flatten(2) for n in sizes], dim=2)
            for source, sizes in (
                (self.key(x), (1, 4, 8, 10, 12)),
                (self.value(x), (1, 5, 7, 9, 13)),
            )
        )
        attention = torch.bmm(self.query(x).flatten(2).transpose(1, 2), keys).softmax(dim=2)
        context = torch.bmm(values, attention.transpose(1, 2))
        return self.scale * context.view_as(x) + x


class SDPANonLocal2d(NonLocal2d):
    """mmcv's non-local block with PyTorch's fused attention, as one would write it today."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        # of contiguous vectors: of others PyTorch holds the whole attention map in memory
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
            for conv in (self.theta, self.phi, self.g)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.conv_out(attended.squeeze(1).mT.unflatten(2, x.shape[2:]))


#: What builds an attention for so many channels. The rivals are as in their configs: NonLocal2d and
#: APNB with half of the channels inside, PAM with an eighth.
ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {
    'SPA': lambda channels: SpatialPoolAttention(in_channels=channels),
    'SPA-conv': lambda channels: SpatialPoolAttention(in_channels=channels, qkv='conv'),
    'literal-SPA': partial(LiteralSPA, convolutions=False),
    'literal-SPA-conv': LiteralSPA,
    'NonLocal2d': NonLocal2d,
    'NonLocal2d-SDPA': SDPANonLocal2d,
    'PAM': lambda channels: PAM(channels, channels // 8),
    'APNB': lambda channels: APNB(
        in_channels=channels,
        channels=channels // 2,
        out_channels=channels,
        query_scales=(1,),
        key_pool_scales=(1, 3, 6, 8),
        conv_cfg=None,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'),
    ),
    'CPA': lambda channels: ChannelPoolAttention(in_channels=channels),
    'CAM': lambda channels: CAM(),
}
#: What each of ours is compared with.
RIVALS = {
    'SPA': ('literal-SPA', 'literal-SPA-conv', 'NonLocal2d', 'NonLocal2d-SDPA', 'PAM', 'APNB'),
    'SPA-conv': ('literal-SPA-conv', 'NonLocal2d', 'NonLocal2d-SDPA', 'PAM', 'APNB'),
    'CPA': ('CAM',),
}


class Subject:
    """An attention of ``ATTENTIONS`` with a map of some shape to run it on."""

    def __init__(self, name: str, shape: tuple[int, ...], device: str | torch.device) -> None:
        self.module = ATTENTIONS[name](shape[1]).to(device)
        self.x = torch.randn(shape, device=device)
        self.grad = torch.randn(shape, device=device)

    @torch.no_grad()
    def forward(self) -> None:
        """Attend without gradients."""
        self.module.eval()(self.x)

    def train_step(self) -> None:
        """Attend, and compute the gradients of parameters and map."""
        x = self.x.detach().requires_grad_()
        self.module.train()(x).backward(self.grad)
        self.module.zero_grad(set_to_none=True)


class LiveBytes(TorchDispatchMode):
    """Adds up the tensors that live at a time; on the meta device they take no memory."""

    peak = 0

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note what it made."""
        out = func(*args, **(kwargs or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for tensor in filter(torch.is_tensor, tree_flatten(out)[0]):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            self._live[reference.cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def free_bytes(device: torch.device) -> float:
    """Memory that is free; infinite where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path('/proc/meminfo')
    if not meminfo.exists():
        return float('inf')
    lines = dict(line.split(':') for line in meminfo.read_text().splitlines())
    return int(lines['MemAvailable'].split()[0]) * 1024


def count_operations(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """GMAC of an attention without its pooling, and of the pooling, for all maps of ``shape``."""
    subject = Subject(name, shape, 'meta')
    with FlopCounterMode(display=False) as total:
        subject.forward()
    with FlopCounterMode(display=False) as pooling:
        getattr(subject.module, 'pool', nn.Identity())(subject.x)
    pooled = pooling.get_total_flops()
    return (total.get_total_flops() - pooled) / 2e9, pooled / 2e9


def measure_attentions(
    *,
    sizes: Sequence[tuple[int, int]],
    channels: int = 512,
    batch_size: int = 1,
    train: bool = False,
    only: Sequence[str] | None = None,
    memory: float | None = None,
    repeats: int = 5,
    threads: int | None = None,
    device: str | None = None,
) -> None:
    """Measure attentions and print a table of each size.

    Args:
        sizes: Heights and widths of the maps.
        channels: Channels of the maps, at least 8. Defaults to 512.
        batch_size: Maps at a time. Defaults to 1.
        train: Whether to measure the training step as well. Defaults to False.
        only: Names of attentions, see ``ATTENTIONS``. Defaults to None: all.
        memory: What to stay within, in GiB. Defaults to None: what is free.
        repeats: Timed rounds. Defaults to 5.
        threads: CPU threads. Defaults to None: torch's choice.
        device: Where they run. Defaults to None: CUDA where there is one.

    Raises:
        ConfigError: There is no such attention or device.
    """
    for name in only or ():
        if name not in ATTENTIONS:
            raise ConfigError(f'--only names {name!r}; choose among {", ".join(ATTENTIONS)}')
    place = prepare(device, threads)
    limit = free_bytes(place) if memory is None else memory * 2**30
    names = only or list(ATTENTIONS)
    for size in sizes:
        _measure(names, (batch_size, channels, *size), train, limit, repeats, place)
    print(f'\nfloat32, median of {repeats} rounds on {describe(place)}')


def _measure(
    names: Sequence[str],
    shape: tuple[int, ...],
    train: bool,
    limit: float,
    repeats: int,
    device: torch.device,
) -> None:
    """Measure attentions on maps of one shape, and print the tables."""
    costs = [['attention', 'parameters', 'GMAC', 'pooling GMAC']]
    for name in names:
        parameters = sum(p.numel() for p in ATTENTIONS[name](shape[1]).parameters())
        operations = [f'{count:.3g}' for count in count_operations(name, shape)]
        costs.append([name, f'{parameters:,}', *operations])
    pairs = [
        (rival, ours) for ours in RIVALS for rival in RIVALS[ours] if {ours, rival} <= {*names}
    ]
    ratios = [['ratio'], *([f'{rival} by {ours}'] for rival, ours in pairs)]
    modes = [('forward', Subject.forward), ('training step', Subject.train_step)]
    for title, run in modes[: 1 + train]:
        needed, functions = {}, {}
        for name in names:
            with LiveBytes() as live:
                run(Subject(name, shape, 'meta'))
            # A half more than expected, for what libraries take inside of an operation.
            needed[name] = 1.5 * live.peak
            if needed[name] <= limit:
                functions[name] = partial(run, Subject(name, shape, device))
        seconds = interleaved_seconds(functions, repeats=repeats, device=device)
        peaks = {name: peak_bytes(function, device) for name, function in functions.items()}
        costs[0] += [f'{title} (ms)', f'{title} peak (MiB)']
        for row, name in zip(costs[1:], names, strict=True):
            if name in functions:
                row.append(f'{statistics.median(seconds[name]) * 1000:.1f}')
                row.append(f'{peaks[name] / 2**20:.1f}')
            else:
                row += ['does not fit', f'needs about {needed[name] / 2**30:.2g} GiB']
        ratios[0] += [f'{title} time', f'{title} memory']
        for row, (rival, ours) in zip(ratios[1:], pairs, strict=True):
            if {rival, ours} <= {*functions}:
                row.append(f'{median_ratio(seconds[rival], seconds[ours]):.2f}')
                row.append(f'{peaks[rival] / peaks[ours]:.1f}')
            else:
                row += ['', '']
    print(f'\n{" x ".join(map(str, shape))}\n\n{markdown(costs, range(1, len(costs[0])))}')
    ratios = [row for row in ratios if any(row[1:])]
    if len(ratios) > 1:
        print('\n' + markdown(ratios, range(1, len(ratios[0]))))


def count_as_the_paper(sizes: Sequence[tuple[int, int]], channels: int = 2048) -> None:
    """Print table 1 of the paper: its count of operations, beside the true one.

    Args:
        sizes: Heights and widths of the maps.
        channels: Channels of the maps. Defaults to 2048.
    """
    inner, anchors = channels // 8, 325
    rows = [['attention', 'map', 'counted GFLOPs', 'true GMAC']]
    for height, width in sizes:
        n, size = height * width, f'{height}x{width}'
        # Convolutions of query and key (shared), of value and of output, with their biases; batch
        # norm (2) and ReLU (1) behind the shared one; one of the two products with N x N.
        layers = 3 * channels * inner + (2 * inner + channels) + 3 * inner
        counted = layers * n + 2 * inner * n * n
        true = 4 * channels * inner * n + 2 * inner * n * n
        rows.append(['non-local', size, f'{counted / 1e9:.1f}', f'{true / 1e9:.1f}'])
        rows.append(['SPA', size, '0.0', f'{2 * channels * anchors * n / 1e9:.1f}'])
    print(f'Table 1 of DPANet, {channels} channels, {inner} inside of the non-local block\n')
    print(markdown(rows, range(1, len(rows[0]))))
    print(
        '\nThe count goes through layers: an operation is one multiply-accumulate of a convolution'
        ',\nbut one multiplication or addition of the matrix product, which is added by hand for '
        'the\nnon-local block. SPA has no layers with parameters, and nothing was added by hand: '
        'its 0.0\nmeans that its two matrix products were not counted. They are the true figure.'
    )
