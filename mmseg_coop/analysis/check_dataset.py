"""Goes through all files of a config's data before a training does."""

from __future__ import annotations

import json as json_
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.utils import track_iter_progress
from mmseg.registry import DATASETS, TRANSFORMS

from ..apis import check_data
from ..config import config_errors, load_config
from ..datasets.faults.folders import dead_links
from ..datasets.faults.walk import iter_datasets, iter_transforms, name_of
from ..datasets.transforms.reading import exif_orientation
from ..errors import ConfigError, printable
from .report import claim, grouped_bars, plt, save
from .tables import markdown


class Problem(NamedTuple):
    """Something that is wrong."""

    split: str
    file: str
    what: str


class Source(NamedTuple):
    """A dataset of a split, without its pipeline, and what that loads files with."""

    dataset: Any
    infos: list[dict[str, Any]]
    load_image: Any
    load_label: Any


@dataclass
class Split:
    """What the files of a split hold: how often each label value occurs, ``(256,)``.

    That is after the dataset's ``reduce_zero_label`` and ``label_map``; 255 are the ignored pixels.
    """

    name: str
    sources: list[Source]
    labels: int = 0  #: that can be read
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))

    @property
    def files(self) -> list[str]:
        """Its images."""
        return [info['img_path'] for source in self.sources for info in source.infos]

    def shares(self, classes: int) -> np.ndarray:
        """Percent of the pixels and of the images of each class and, last, of the ignored label."""
        shares = [self.pixels / max(1, self.pixels.sum()), self.images / max(1, self.labels)]
        return 100 * np.stack(shares)[:, [*range(classes), 255]]


def check_dataset(
    config: str,
    *,
    splits: Sequence[str] = ('train', 'val', 'test'),
    out: str | None = None,
    json: str | None = None,
    force: bool = False,
    show: int = 20,
    workers: int = 8,
    cfg_options: Mapping[str, Any] | Sequence[str] | None = None,
) -> list[Problem]:
    """Check all files of a config's data, print what is wrong and how often each class occurs.

    Args:
        config: Config file.
        splits: What to check. Defaults to all that the config has.
        out: Histogram of the classes. Defaults to None: ``check_dataset.png`` in the work directory
            of the config.
        json: File that all findings are also written to. Defaults to None.
        force: Whether to replace files. Defaults to False.
        show: Rows of problems that are printed, 0 for all. Defaults to 20.
        workers: Threads that read files. Defaults to 8.
        cfg_options: Values that override the config's, see :func:`load_config`. Defaults to None.

    Returns:
        What is wrong.

    Raises:
        ConfigError: The config is at fault.
        DataError: Folders or lists of the data cannot be used.
        OSError: The data do not exist, or a file would be replaced.
    """
    cfg = load_config(config, cfg_options=cfg_options)
    path = Path(out or Path(cfg.work_dir, 'check_dataset.png'))
    chosen = [split for split in splits if cfg.get(f'{split}_dataloader') is not None]
    if not chosen:
        raise ConfigError(f'{config} has no data of {" or ".join(splits)}.')
    # Links that stand for single files and lead nowhere go into the table with the others.
    check_data(cfg, splits=tuple(chosen), data_faults='skip')
    claim(path, json, force=force)
    found = [Split(name, list(open_sources(cfg, name))) for name in chosen]
    first = found[0].sources[0].dataset
    classes = list(first.metainfo.get('classes') or ())
    if not classes:
        raise ConfigError(f'{type(first).__name__} names no classes; set metainfo.classes.')

    problems: list[Problem] = []
    for split in found:
        for source in split.sources:
            kind, root = type(source.dataset).__name__, source.dataset.data_root
            print(f'{split.name}: {kind} in {root}', file=sys.stderr)
            problems += [Problem(split.name, *f) for f in check_source(source, split, workers)]
    reduced = [Problem('all', '(config)', what) for what in check_reduced(found, len(classes))]
    for train in (split for split in found if split.name == 'train' and not reduced):
        absent = check_absent(train, classes)
        problems += [Problem('train', '(config)', what) for what in absent]
    problems += reduced
    notes = list(find_notes(found, classes))

    rows = [['class', *(f'{s.name} {what} %' for s in found for what in ('pixels', 'images'))]]
    shares = np.concatenate([split.shares(len(classes)) for split in found]).T
    for name, line in zip([*classes, 'ignored'], shares, strict=True):
        rows.append([name, *(f'{share:.2f}' for share in line)])
    for split in found:
        print(f'{split.name}: {len(split.files)} images, {split.labels} labels that can be read')
    print(f'\n{markdown(rows)}')
    draw(found, classes, path)
    print(f'\nhistogram: {path}')
    if json:
        counts = {
            split.name: dict(
                images=len(split.files),
                labels=split.labels,
                class_pixels=split.pixels[: len(classes)].tolist(),
                class_images=split.images[: len(classes)].tolist(),
                ignored_pixels=int(split.pixels[255]),
            )
            for split in found
        }
        entries = [problem._asdict() for problem in problems]
        report = dict(classes=classes, splits=counts, problems=entries, notes=notes)
        Path(json).write_text(json_.dumps(report, indent=2) + '\n')
    for note in notes:
        print(f'note: {note}')
    if not problems:
        print('nothing is wrong')
        return []
    shown = problems[: show or None]
    print(f'\n{len(problems)} problems\n\n{markdown([Problem._fields, *shown])}')
    if len(problems) > len(shown):
        print(f'and {len(problems) - len(shown)} more (--show 0, or --json FILE, gives all)')
    return problems


def open_sources(cfg: Config, split: str) -> Iterator[Source]:
    """Open the datasets of a split, which wrappers may hold."""
    for leaf in iter_datasets(cfg[f'{split}_dataloader']['dataset']):
        steps = {name_of(step): dict(step) for step in iter_transforms(leaf.get('pipeline', ()))}
        load_image, load_label = (
            steps.get(name, dict(type=name)) for name in ('LoadSegImage', 'LoadSegAnnotations')
        )
        load_label.pop('reduce_zero_label', None)  # the dataset's, or check_data has refused it
        load_label['num_classes'] = None  # labels outside of the classes are counted, not refused
        with config_errors(cfg):
            dataset = DATASETS.build({**leaf, 'pipeline': [], 'lazy_init': False})
            second = [steps[name] for name in steps if name == 'LoadSecondImage']
            image, label = Compose([load_image, *second]), TRANSFORMS.build(load_label)
            infos = [dataset.get_data_info(index) for index in range(len(dataset))]
            yield Source(dataset, infos, image, label)


def read(info: dict[str, Any], source: Source) -> tuple[dict[str, str], np.ndarray | None]:
    """Read an image and its label: what is wrong, by file, and the pixels of every label value.

    These are ``(256,)``, or None without a label that can be read.
    """
    faults = {}
    results = dict(info)
    try:
        results = source.load_image(results)
        results.pop('img')
    except ValueError as error:
        faults[info['img_path']] = str(error).removeprefix(f'image {info["img_path"]} ')
    if 'seg_map_path' not in info:
        return faults, None
    try:
        label = source.load_label(results)['gt_seg_map']
    except ValueError as error:
        faults[info['seg_map_path']] = str(error).removeprefix(f'label {info["seg_map_path"]} ')
        return faults, None
    return faults, np.bincount(label.ravel(), minlength=256)


def check_source(source: Source, split: Split, workers: int) -> Iterator[tuple[str, str]]:
    """Check all files of a dataset by threads, and count their pixels: files at fault, and why."""
    dataset = source.dataset
    classes, ignored = len(dataset.metainfo.get('classes') or ()), dataset.ignore_index
    outside: dict[str, dict[int, int]] = {}
    known: set[str] = set()
    with ThreadPoolExecutor(workers) as pool:
        read_files = pool.map(lambda info: read(info, source), source.infos)
        results = zip(source.infos, read_files, strict=True)
        progress = track_iter_progress((results, len(source.infos)), file=sys.stderr)
        for info, (faults, counts) in progress:
            known.update(faults)
            yield from faults.items()
            if counts is not None:
                values = [value for value in range(classes, 256) if value != ignored]
                beyond = {value: int(counts[value]) for value in values if counts[value]}
                if beyond:
                    outside[info['seg_map_path']] = beyond
                if ignored >= classes:
                    count, counts[ignored] = counts[ignored], 0
                    counts[255] = count
                split.labels += 1
                split.pixels += counts
                split.images += counts > 0
    # No listing has dead links among its images, but a training stops at them.
    for link in (link for links in dead_links(dataset).values() for link in links):
        if link not in known:
            yield printable(link), 'is a link that leads nowhere; fix or remove it'
    values = sorted({value for beyond in outside.values() for value in beyond})
    if values == [classes] and not dataset.reduce_zero_label:
        start = 'if 0 means unlabelled, the classes start at 1'
        start = start if split.pixels[0] else 'the ids seem to start at 1'
        hint = f'{start}: set reduce_zero_label=True in the dataset'
    elif values[:1] == [254] and dataset.reduce_zero_label:
        hint = 'reduce_zero_label=True takes 1 from every id: 255 means ignored, 254 is no class'
    else:
        hint = 'convert original ids to class ids, or correct the classes'
    for file, beyond in outside.items():
        text = ', '.join(f'{value} ({count} pixels)' for value, count in beyond.items())
        yield file, f'holds {text}; allowed are 0 to {classes - 1}; {hint}'


def check_reduced(found: Sequence[Split], classes: int) -> Iterator[str]:
    """Whether reduce_zero_label was set for labels that start at 0 already."""
    reducing = {bool(s.dataset.reduce_zero_label) for split in found for s in split.sources}
    if len(reducing) > 1:
        yield 'reduce_zero_label differs between the datasets'
    pixels = np.sum([split.pixels for split in found], axis=0)
    if reducing == {True} and pixels[:classes].any() and not pixels[classes - 1] and pixels[255]:
        yield (
            'with reduce_zero_label=True the last class never occurs and '
            f'{100 * pixels[255] / pixels.sum():.1f} % of the pixels are ignored: if the ids start '
            'at 0, set reduce_zero_label=False'
        )


def check_absent(train: Split, classes: Sequence[str]) -> Iterator[str]:
    """Classes that never occur in training, where ignored pixels may be theirs."""
    absent = [name for name, pixels in zip(classes, train.pixels, strict=False) if not pixels]
    if absent and train.pixels[255]:
        hint = (
            'the masks are saved as 0 and 255: convert 255 to 1'
            if set(np.flatnonzero(train.pixels)) == {0, 255}
            else 'if these are its pixels, convert them to its id (reduce_zero_label=True ignores '
            '0), else take it out of the classes'
        )
        share = f'{100 * train.pixels[255] / train.pixels.sum():.1f} %'
        yield f'no pixel is of {", ".join(absent)}, but {share} of the pixels are ignored; {hint}'


def find_notes(found: Sequence[Split], classes: Sequence[str]) -> Iterator[str]:
    """What need not be wrong: shared images, images that viewers turn, classes never shown."""
    files = {split.name: set(split.files) for split in found}
    for name in ('val', 'test'):
        common = files.get('train', set()) & files.get(name, set())
        if common:
            yield f'{len(common)} images of {name} are in train as well, e.g. {min(common)}'
    every = sorted(set().union(*files.values()))
    turned = [file for file in every if os.path.isfile(file) and exif_orientation(file) != 1]
    if turned:
        yield (
            f'{len(turned)} images have an EXIF orientation, e.g. {printable(turned[0])}: they '
            'are loaded as stored, so their labels have to lie as the stored pixels do'
        )
    for split in found:
        absent = [name for name, shown in zip(classes, split.images, strict=False) if not shown]
        if split.labels and absent:
            yield f'{split.name} never shows {", ".join(absent)}'


def draw(found: Sequence[Split], classes: Sequence[str], path: Path) -> None:
    """Draw the histogram."""
    names = [*classes, 'ignored']
    size = 10, 1.2 + 0.32 * len(names)
    figure, axes = plt.subplots(1, 2, figsize=size, layout='constrained', sharey=True)
    for which, (axis, title) in enumerate(zip(axes, ('pixels', 'images'), strict=True)):
        bars = {f'{s.name} ({len(s.files)} images)': s.shares(len(classes))[which] for s in found}
        grouped_bars(axis, bars, names, horizontal=True)
        axis.set(xlim=(0, 100), xlabel=f'% of the {title}')
        axis.grid(axis='x', alpha=0.3)
    axes[0].set_xscale('symlog', linthresh=0.1)
    axes[0].set_xlim(0, 100)
    axes[0].set_xticks([0, 0.1, 1, 10, 100], ['0', '0.1', '1', '10', '100'])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside upper center', ncols=3)
    save(figure, path)
