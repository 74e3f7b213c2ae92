"""Devices, and time and memory of functions, side by side in one process."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

_STATUS, _CLEAR_REFS = Path('/proc/self/status'), Path('/proc/self/clear_refs')


def choose_device(text: str | None) -> torch.device:
    """Device from the command line.

    Args:
        text: Its name; None takes CUDA where there is one.

    Raises:
        ValueError: There is no such device.
    """
    try:
        device = torch.device(text or ('cuda' if torch.cuda.is_available() else 'cpu'))
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # no such device, or torch is without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            f'--device {text!r} cannot be used here: {reason} It takes cpu, cuda or cuda:N.'
        ) from error
    return device


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


def peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """Peak of the memory that a function takes beyond what is held before it.

    Args:
        function: What to measure.
        device: Where it runs.

    Returns:
        Bytes: of the CUDA allocator, or of the process as the kernel counts it. None where neither
        can be read (CPU on other systems than Linux).
    """
    gc.collect()
    if device.type == 'cuda':
        _synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _CLEAR_REFS.exists():
        return None
    # What former calls freed may still lie in the process; it would hide what this one takes.
    malloc_trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if malloc_trim is not None:
        malloc_trim(0)
    _CLEAR_REFS.write_text('5')  # resets the high-water mark to the present size
    before = _status_bytes('VmRSS')
    function()
    return max(0, _status_bytes('VmHWM') - before)


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _status_bytes(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f'{key}:'))
    return int(line.split()[1]) * 1024
