"""Cost of DPANet's attentions and of what they replace, side by side in one process.

Prints a Markdown table for every map size: parameters, multiply-accumulate operations, time and the
peak of the memory taken beyond the map itself. Attentions: SPA and CPA, with the 1x1 convolutions
of figure 4 or without; the literal SPA, which projects the whole map and pools level by level;
mmcv's NonLocal2d; PAM and CAM of DANet; APNB of ANN. What does not fit into the memory is left out
and said so.

With --count ann it prints table 1 of the paper instead: its own count, beside the true one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from mmseg_coop.analysis.measure import interleaved_seconds, median_ratio, peak_bytes
from mmseg_coop.analysis.tables import markdown

#: The sizes of table 1: an eighth of 768x768 and of 2048x1024.
SIZES = [(96, 96), (256, 128)]
#: What each of ours is compared with.
RIVALS = {
    'SPA': ('literal-SPA', 'literal-SPA-conv', 'NonLocal2d', 'PAM', 'APNB'),
    'SPA-conv': ('literal-SPA-conv', 'NonLocal2d', 'PAM', 'APNB'),
    'CPA': ('CAM',),
}


def read_size(text: str) -> tuple[int, int]:
    """Height and width from the command line."""
    sides = text.split('x')
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f'takes HEIGHTxWIDTH, such as 96x96, not {text!r}')
    return int(sides[0]), int(sides[1])


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--count',
        choices=['true', 'ann'],
        default='true',
        help="true: measure; ann: the count of table 1, which is that of ANN's authors; "
        'default: %(default)s',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=read_size,
        default=SIZES,
        metavar='HxW',
        help='maps; default: 96x96 256x128',
    )
    parser.add_argument(
        '--channels', type=int, help='channels of the map; default: 512, with --count ann 2048'
    )
    parser.add_argument('--batch-size', type=int, default=1, help='maps at a time; default: 1')
    parser.add_argument('--train', action='store_true', help='measure the training step as well')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='attentions to measure')
    parser.add_argument('--repeats', type=int, default=5, help='timed rounds; default: 5')
    parser.add_argument('--threads', type=int, help="CPU threads; default: torch's choice")
    parser.add_argument(
        '--memory', type=float, metavar='GIB', help='memory to stay within; default: what is free'
    )
    parser.add_argument('--device', help='cpu, cuda or cuda:N; default: cuda where there is one')
    args = parser.parse_args()
    args.channels = args.channels or (2048 if args.count == 'ann' else 512)
    for name in ('batch_size', 'repeats', 'threads'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name.replace("_", "-")} is {value} but has to be at least 1')
    if args.channels < 8:  # some attentions work with an eighth of them
        parser.error(f'--channels is {args.channels} but has to be at least 8')
    unknown = sorted(set(args.only or []) - set(ATTENTIONS))
    if unknown:
        parser.error(f'--only names {unknown[0]!r}; choose among {", ".join(ATTENTIONS)}')
    if args.device is None:
        args.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError):
        parser.error(f'--device {args.device} is not there; use cpu')
    return args


class LiteralSPA(nn.Module):
    """SPA as section 3.2 spells it out: project the map, pool every level, attend, scale, add.

    Args:
        channels: Channels C of the map.
        convolutions: Whether 1x1 convolutions make queries, keys and values.
    """

    def __init__(self, channels: int, convolutions: bool) -> None:
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


def build_spa(channels: int, **kwargs: Any) -> nn.Module:
    """Our SPA."""
    from mmseg_coop.models.attentions import SpatialPoolAttention

    return SpatialPoolAttention(in_channels=channels, **kwargs)


def build_cpa(channels: int) -> nn.Module:
    """Our CPA."""
    from mmseg_coop.models.attentions import ChannelPoolAttention

    return ChannelPoolAttention(in_channels=channels)


def build_non_local(channels: int) -> nn.Module:
    """The non-local block of mmcv, at its defaults: half the channels inside."""
    from mmcv.cnn import NonLocal2d

    return NonLocal2d(channels)


def build_danet(name: str, channels: int) -> nn.Module:
    """PAM (with an eighth of the channels inside, as in its configs) or CAM of mmseg's DANet."""
    from mmseg.models.decode_heads import da_head

    return da_head.PAM(channels, channels // 8) if name == 'PAM' else da_head.CAM()


def build_ann(channels: int) -> nn.Module:
    """The pyramid block of mmseg's ANN; as in its configs, with half the channels inside."""
    from mmseg.models.decode_heads.ann_head import APNB

    return APNB(
        in_channels=channels,
        channels=channels // 2,
        out_channels=channels,
        query_scales=(1,),
        key_pool_scales=(1, 3, 6, 8),
        conv_cfg=None,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'),
    )


ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {
    'SPA': build_spa,
    'SPA-conv': lambda channels: build_spa(channels, qkv='conv'),
    'literal-SPA': lambda channels: LiteralSPA(channels, convolutions=False),
    'literal-SPA-conv': lambda channels: LiteralSPA(channels, convolutions=True),
    'NonLocal2d': build_non_local,
    'PAM': lambda channels: build_danet('PAM', channels),
    'APNB': build_ann,
    'CPA': build_cpa,
    'CAM': lambda channels: build_danet('CAM', channels),
}


class Subject:
    """An attention with a map to run it on.

    Args:
        name: Its name in ``ATTENTIONS``.
        shape: Shape of the map.
        device: Where it runs.
    """

    def __init__(self, name: str, shape: tuple[int, ...], device: str) -> None:
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


MODES = {'forward': Subject.forward, 'training step': Subject.train_step}


class LiveBytes(TorchDispatchMode):
    """Adds up the tensors that live at a time; on the meta device they take no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note what it made."""
        out = func(*args, **(kwargs or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self._live[reference.cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def expected_bytes(name: str, shape: tuple[int, ...], mode: str) -> int:
    """Memory that an attention will take beyond its map, found without taking it."""
    subject = Subject(name, shape, 'meta')
    with LiveBytes() as live:
        MODES[mode](subject)
    return live.peak


def allocated_peak(function: Callable[[], object], device: torch.device) -> int:
    """Peak of the memory that PyTorch allocates beyond what is held before.

    On the CPU it is read from the profiler's record of every allocation. The size of the process
    would also hold what the C library keeps of freed tensors, as much as small attentions need.
    """
    if device.type == 'cuda':
        return peak_bytes(function, device) or 0
    os.environ.setdefault('KINETO_LOG_LEVEL', '6')  # the profiler talks at its start and its end
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as record:
        function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'trace.json'
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    events = [event['args'] for event in events if event['name'] == '[memory]']
    events.sort(key=lambda event: event['Ev Idx'])
    return max(accumulate((event['Bytes'] for event in events), initial=0))


def free_bytes(device: str) -> int | None:
    """Memory that is free, or None where the system does not say."""
    if device.startswith('cuda'):
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path('/proc/meminfo')
    if meminfo.exists():
        lines = dict(line.split(':') for line in meminfo.read_text().splitlines())
        return int(lines['MemAvailable'].split()[0]) * 1024
    return None


def count_operations(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """GMAC of an attention without its pooling, and of the pooling, for all maps of ``shape``."""
    from mmseg_coop.models.attentions import PoolUnit

    subject = Subject(name, shape, 'meta')
    with FlopCounterMode(display=False) as total:
        subject.forward()
    with FlopCounterMode(display=False) as pooling:
        for module in subject.module.modules():
            if isinstance(module, PoolUnit):
                module(subject.x)
    pooled = pooling.get_total_flops()
    return (total.get_total_flops() - pooled) / 2e9, pooled / 2e9


def measure(size: tuple[int, int], args: argparse.Namespace) -> None:
    """Measure all attentions on maps of one size, and print the table."""
    shape = (args.batch_size, args.channels, *size)
    names = args.only or list(ATTENTIONS)
    limit = args.memory * 2**30 if args.memory is not None else free_bytes(args.device)
    columns: dict[str, dict[str, tuple[str, str]]] = {}
    ratios: dict[str, dict[str, tuple[str, str]]] = {}
    for mode, run in MODES.items():
        if mode != 'forward' and not args.train:
            continue
        columns[mode], ratios[mode] = {}, {}
        functions: dict[str, Callable[[], None]] = {}
        for name in names:
            # A half more than expected, for what libraries take inside of an operation.
            needed = 1.5 * expected_bytes(name, shape, mode)
            if limit is not None and needed > limit:
                columns[mode][name] = 'does not fit', f'needs about {needed / 2**30:.2g} GiB'
            else:
                subject = Subject(name, shape, args.device)
                functions[name] = lambda subject=subject, run=run: run(subject)
        device = torch.device(args.device)
        seconds = interleaved_seconds(functions, repeats=args.repeats, device=device)
        peaks = {name: allocated_peak(function, device) for name, function in functions.items()}
        for name in functions:
            columns[mode][name] = (
                f'{statistics.median(seconds[name]) * 1000:.1f}',
                f'{peaks[name] / 2**20:.1f}',
            )
        for ours, rivals in RIVALS.items():
            for rival in rivals:
                if ours in functions and rival in functions:
                    ratios[mode][f'{rival} by {ours}'] = (
                        f'{median_ratio(seconds[rival], seconds[ours]):.2f}',
                        f'{peaks[rival] / peaks[ours]:.1f}',
                    )

    print(f'\n{" x ".join(map(str, shape))}\n')
    header = ['attention', 'parameters', 'GMAC', 'pooling GMAC']
    for mode in columns:
        header += [f'{mode} (ms)', f'{mode} peak (MiB)']
    rows = [header]
    for name in names:
        products, pooling = count_operations(name, shape)
        module = ATTENTIONS[name](args.channels)
        row = [name, f'{sum(p.numel() for p in module.parameters()):,}']
        row += [f'{products:.3g}', f'{pooling:.3g}']
        rows.append(row + [cell for cells in columns.values() for cell in cells[name]])
    print(markdown(rows, range(1, len(rows[0]))))
    header = ['ratio']
    for mode in ratios:
        header += [f'{mode} time', f'{mode} memory']
    blank = ('', '')  # one of the two does not fit
    rows = [header] + [
        [pair, *(cell for cells in ratios.values() for cell in cells.get(pair, blank))]
        for pair in ratios['forward']
    ]
    if len(rows) > 1:
        print('\n' + markdown(rows, range(1, len(rows[0]))))


def print_table_1(sizes: list[tuple[int, int]], channels: int) -> None:
    """Print table 1 of the paper: its count of operations, beside the true one."""
    inner, anchors = channels // 8, 325
    rows = [['attention', 'map', 'counted GFLOPs', 'true GMAC']]
    for height, width in sizes:
        n = height * width
        # Convolutions of query and key (shared), of value and of output, with their biases; batch
        # norm (2) and ReLU (1) behind the shared one; one of the two products with N x N.
        layers = 3 * channels * inner + (2 * inner + channels) + 3 * inner
        counted = layers * n + 2 * inner * n * n
        true = 4 * channels * inner * n + 2 * inner * n * n
        rows.append(['non-local', f'{height}x{width}', f'{counted / 1e9:.1f}', f'{true / 1e9:.1f}'])
        spa = 2 * channels * anchors * n
        rows.append(['SPA', f'{height}x{width}', '0.0', f'{spa / 1e9:.1f}'])
    print(f'Table 1 of DPANet, {channels} channels, {inner} inside of the non-local block\n')
    print(markdown(rows, range(1, len(rows[0]))))
    print(
        '\nThe count goes through layers: an operation is one multiply-accumulate of a convolution'
        ',\nbut one multiplication or addition of the matrix product, which is added by hand for '
        'the\nnon-local block. SPA has no layers with parameters, and nothing was added by hand: '
        'its 0.0\nmeans that its two matrix products were not counted. They are the true figure.'
    )


def main() -> None:
    """Run the command line."""
    args = parse_args()
    if args.count == 'ann':
        print_table_1(args.sizes, args.channels)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    where = (
        torch.cuda.get_device_name(args.device)
        if args.device.startswith('cuda')
        else f'CPU, {torch.get_num_threads()} threads of {os.cpu_count()}'
    )
    print(f'{where}, torch {torch.__version__}, float32, median of {args.repeats} rounds')
    for size in args.sizes:
        measure(size, args)


if __name__ == '__main__':
    main()
