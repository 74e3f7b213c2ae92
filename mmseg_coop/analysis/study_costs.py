"""What the rows of a study cost: parameters, operations and time, beside what they reach."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import image_size, load_config
from ..engine.hooks.checkpoint_hook import write_atomically
from ..models.cooperation import resolve_topology
from .benchmark import Subject
from .flops import count
from .measure import interleaved_seconds
from .report import plt, save
from .study import Row, Run, training_logs
from .tables import spread

COLUMNS = ('parameters (M)', 'GMAC', 'inference (ms)')
FILE_NAME = 'costs.json'
ROUNDS = 9


def costs_of(row: Row, outputs: Iterable[str], device: torch.device) -> dict[str, dict[str, float]]:
    """Count and time the networks that a row's outputs need, one image at a time.

    What was measured before is read from a file in the row's folder.

    Returns:
        The values of ``COLUMNS``, by output.
    """
    file = row.folder / FILE_NAME
    known = json.loads(file.read_text('utf-8')) if file.is_file() else {}
    for output in outputs:
        place = f'{output}, {device.type}'
        if place not in known:
            cfg = load_config(row.config, cfg_options=row.options)
            keep_needed(cfg.model, output)
            size = image_size(cfg)
            subject = Subject(cfg, (1, *size), device=device)
            seconds = interleaved_seconds({'': subject.forward()}, repeats=ROUNDS, device=device)
            total = count(subject.model, size)['total']
            values = total['params'], total['gmac'], statistics.median(seconds['']) * 1000
            known[place] = dict(zip(COLUMNS, values, strict=True))
            write_atomically(json.dumps(known, indent=2).encode(), file)
    return {output: known[f'{output}, {device.type}'] for output in outputs}


def keep_needed(model: dict[str, Any], output: str) -> None:
    """Leave only the networks that an output comes from: its own, and all that send to it."""
    networks = model['backbone'].get('networks', {})
    if output not in networks:  # the ensemble, or a model of one network
        return
    head = model['decode_head']
    senders = resolve_topology(head.get('topology', 'cross'), list(networks))
    needed = [output]
    for receiver in needed:  # it grows meanwhile
        needed += [sender for sender in senders.get(receiver, ()) if sender not in needed]
    for part in (networks, head['networks'], model['backbone'].get('normalize') or {}):
        for name in {*part} - {*needed}:
            del part[name]
    head['topology'] = {name: senders[name] for name in needed if name in senders} or 'none'
    head.pop('transfer', None)
    for other in ('auxiliary_head', 'test_cfg'):
        model.pop(other, None)


def seconds_per_iteration(runs: Sequence[Run]) -> float:
    """Median of the time of a training iteration, with whatever ran beside it."""
    logs = [log for run in runs for log in training_logs(run.folder)]
    return statistics.median(line['time'] for log in logs for line in log)


def draw_costs(
    title: str, points: Mapping[str, tuple[float, Sequence[float]]], split: str, out: Path
) -> None:
    """Draw mIoU of rows against their operations; points are GMAC and the mIoU of every seed."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for label, (gmac, seeds) in points.items():
        mean = statistics.mean(seeds)
        axis.errorbar(gmac, mean, yerr=spread(seeds), fmt='o', capsize=3, label=label)
    figure.legend(loc='outside right upper', frameon=False)
    axis.set(title=title, xlabel='GMAC an image', ylabel=f'{split} mIoU (%)')
    axis.margins(x=0.25, y=0.15)
    save(figure, out)
