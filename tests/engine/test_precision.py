from __future__ import annotations

import pytest
import torch
from mmengine.logging import MMLogger

from mmseg_coop.engine import precision


@pytest.mark.parametrize(
    ('flags', 'dtype', 'slow'),
    [
        ('flags : fpu avx2 avx512f', torch.bfloat16, True),
        ('flags : fpu avx2 avx512f', torch.float32, False),
        ('flags : fpu avx512_bf16', torch.bfloat16, False),
        ('flags : fpu amx_bf16 amx_tile', torch.bfloat16, False),
        ('Features : fp asimd bf16 i8mm', torch.bfloat16, False),
        ('Features : fp asimd', torch.bfloat16, True),
        (None, torch.bfloat16, False),  # macOS
    ],
)
def test_emulated_bfloat16_is_said_once(flags, dtype, slow, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, '_CPU_INFO', tmp_path / 'cpuinfo')
    if flags is not None:
        (tmp_path / 'cpuinfo').write_text(flags)
    MMLogger.get_instance('precision', log_file=str(tmp_path / 'log'))
    for _ in range(2):
        precision.warn_if_slow(dtype, 'cpu')
    said = (tmp_path / 'log').read_text()
    assert said.count('bfloat16 will be slow: cpu has no') == slow


@pytest.mark.parametrize(('capability', 'slow'), [((7, 5), True), ((8, 0), False)])
def test_a_gpu_tells_by_its_capability(capability, slow, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: capability)
    MMLogger.get_instance('precision', log_file=str(tmp_path / 'log'))
    precision.warn_if_slow(torch.bfloat16, 'cuda:0')
    assert ('slow: cuda:0 has no' in (tmp_path / 'log').read_text()) == slow
