"""Time and memory of functions, side by side in one process."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from ..apis.model import choose_device

#: Runs before the first that counts: on a GPU libraries choose their kernels and clocks rise.
WARM_UP = dict(cpu=1, cuda=5)
#: What a processor may have that PyTorch's products use.
FLAGS = ('avx2', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_bf16')
#: Packages whose versions make a difference to time.
PACKAGES = ('torch', 'torchvision', 'mmcv', 'onedl-mmcv', 'mmengine', 'onedl-mmengine', 'timm')


def prepare(device: str | None, threads: int | None) -> torch.device:
    """Choose device and CPU threads for measuring, and draw the same numbers each time."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    return choose_device(device)


def describe(device: torch.device) -> str:
    """Say what figures were measured on: the device, what it can do, and versions."""
    versions = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f'{package} {version(package)}')
    if device.type == 'cuda':
        facts = [
            torch.cuda.get_device_name(device),
            _nvidia_smi(device) or 'driver and clocks unknown without nvidia-smi',
            f'CUDA {torch.version.cuda}',
            f'cuDNN {torch.backends.cudnn.version()}',
        ]
    else:
        info = Path('/proc/cpuinfo')
        lines = info.read_text().splitlines() if info.is_file() else []
        known = dict(re.split(r'\s*:\s*', line, maxsplit=1) for line in lines if ':' in line)
        flags = known.get('flags', '').split()
        facts = [
            known.get('model name') or platform.processor() or platform.machine(),
            f'threads: {torch.get_num_threads()} of {os.cpu_count()}',
            ' '.join(flag for flag in FLAGS if flag in flags) or f'none of {" ".join(FLAGS)}',
        ]
    return ', '.join([*facts, *versions])


def _nvidia_smi(device: torch.device) -> str:
    """What the driver says of a GPU, clocks as they are now."""
    program = shutil.which('nvidia-smi')
    if program is None:
        return ''
    wanted = ('driver_version', 'clocks.sm', 'clocks.max.sm', 'clocks.mem')
    uuid = getattr(torch.cuda.get_device_properties(device), 'uuid', None)
    which = str(device.index or 0) if uuid is None else f'GPU-{uuid}'
    done = subprocess.run(
        [program, f'--query-gpu={",".join(wanted)}', '--format=csv,noheader', '-i', which],
        capture_output=True,
        text=True,
        timeout=30,
    )
    values = done.stdout.strip().split(', ')
    return ', '.join(f'{key} {value}' for key, value in zip(wanted, values))  # noqa: B905


def interleaved_seconds(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Time functions in turn, A B A B …, so that a drift of the machine hits all alike.

    Args:
        functions: What to time, by name; each is run before, see ``WARM_UP``.
        repeats: Timed rounds.
        device: Where they run. A GPU is idle when its clock, a pair of events, starts.

    Returns:
        Seconds of each round, by name.
    """
    for function in functions.values():
        for _ in range(WARM_UP.get(device.type, 1)):
            function()
    clock = _cuda_seconds if device.type == 'cuda' else _cpu_seconds
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(clock(function, device))
    return seconds


def _cpu_seconds(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _cuda_seconds(function: Callable[[], object], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        start.record()
        function()
        end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000


def most_expensive(
    function: Callable[[], object], device: torch.device, count: int = 5
) -> list[tuple[str, str, float]]:
    """Profile a function that has been run before.

    Returns:
        The most expensive operators, each with the shapes it takes and its share of the time that
        all take in themselves.
    """
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, *([activity.CUDA] if device.type == 'cuda' else [])]
    with _quiet_profile(activities=activities, record_shapes=True) as record:
        function()
    name = 'self_cpu_time_total'
    events = record.key_averages(group_by_input_shape=True)
    if device.type == 'cuda':
        newer = hasattr(events[0], 'self_device_time_total')
        name = 'self_device_time_total' if newer else 'self_cuda_time_total'
    total = sum(getattr(event, name) for event in events)
    events = sorted(events, key=lambda event: -getattr(event, name))[:count]
    found = []
    for event in events:
        shapes = ' '.join('x'.join(map(str, shape)) for shape in event.input_shapes if shape)
        found.append((event.key, shapes, getattr(event, name) / total))
    return found


def _quiet_profile(**options: Any) -> Any:
    os.environ.setdefault('KINETO_LOG_LEVEL', '6')  # the profiler talks at its start and its end
    return torch.profiler.profile(**options)


def median_ratio(numerator: list[float], *denominators: list[float]) -> float:
    """Median over the rounds of one function's time by the sum of others' times."""
    rounds = zip(numerator, *denominators, strict=True)
    return statistics.median(first / sum(others) for first, *others in rounds)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Peak of the memory that PyTorch allocates beyond what is held before.

    On the CPU it is read from the profiler's record of every allocation. The size of the process
    would also hold what the C library keeps of freed tensors, as much as small functions need.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet_profile(activities=activities, profile_memory=True) as record:
        function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'trace.json'
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    events = [event['args'] for event in events if event['name'] == '[memory]']
    events.sort(key=lambda event: event['Ev Idx'])
    return max(accumulate((event['Bytes'] for event in events), initial=0))
