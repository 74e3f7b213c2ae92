"""Time and memory of functions, side by side in one process."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path

import torch


def describe(device: torch.device) -> str:
    """Say what figures were measured on."""
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    else:
        name = f'CPU, {torch.get_num_threads()} threads of {os.cpu_count()}'
    return f'{name}, torch {torch.__version__}'


def interleaved_seconds(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Time functions in turn, A B A B …, so that a drift of the machine hits all alike.

    Args:
        functions: What to time, by name; each is run once before.
        repeats: Timed rounds.
        device: Where they run; CUDA is waited for.

    Returns:
        Seconds of each round, by name.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            _synchronize(device)
            start = time.perf_counter()
            function()
            _synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(numerator: list[float], *denominators: list[float]) -> float:
    """Median over the rounds of one function's time by the sum of others' times.

    Args:
        numerator: Seconds of each round.
        denominators: Seconds of each round of the functions it is compared with.

    Returns:
        The ratio.
    """
    rounds = zip(numerator, *denominators, strict=True)
    return statistics.median(first / sum(others) for first, *others in rounds)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Peak of the memory that PyTorch allocates beyond what is held before.

    On the CPU it is read from the profiler's record of every allocation. The size of the process
    would also hold what the C library keeps of freed tensors, as much as small functions need.

    Args:
        function: What to measure.
        device: Where it runs.
    """
    if device.type == 'cuda':
        _synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
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


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
