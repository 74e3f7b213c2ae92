"""Which half precision suits a device, and where bfloat16 costs time instead of saving it."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from mmengine.logging import print_log

#: Where Linux lists what a processor can do, whatever its architecture and the version of torch.
_CPU_INFO = Path('/proc/cpuinfo')
#: What computes with bfloat16: AVX-512 and AMX of x86, and ARM's instructions.
_CPU_FLAGS = {'avx512_bf16', 'amx_bf16', 'bf16'}


def half_precision(device: str) -> str:
    """What ``--amp`` alone means on a kind of device: bfloat16 on the CPU, float16 elsewhere."""
    return 'bfloat16' if device == 'cpu' else 'float16'


def warn_if_slow(dtype: torch.dtype, device: torch.device | str) -> None:
    """Warn, once a log, if a device only emulates bfloat16.

    Nothing is said of other types, nor where the system does not tell, as on macOS and Windows.

    Args:
        dtype: Type to be computed with.
        device: Where.
    """
    device = torch.device(device)
    if device.type == 'cuda':
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        listed = _CPU_INFO.read_text().split() if _CPU_INFO.is_file() else _CPU_FLAGS
        fast = device.type != 'cpu' or not _CPU_FLAGS.isdisjoint(listed)
    if dtype == torch.bfloat16 and not fast:
        print_log(
            f'bfloat16 will be slow: {device} has no instructions for it (on a CPU one of '
            f'{", ".join(sorted(_CPU_FLAGS))}; on an NVIDIA GPU those of compute capability 8.0), '
            'so it is emulated. float32 is faster here.',
            logger='current',
            level=logging.WARNING,
        )
