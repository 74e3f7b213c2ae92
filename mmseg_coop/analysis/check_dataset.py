"""Goes through all files of a config's data before a training does."""

from __future__ import annotations

import json as json_
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.utils import ProgressBar
from mmseg.registry import DATASETS

from ..apis import check_data
from ..config import config_errors, load_config
from ..datasets import LoadSegAnnotations, LoadSegImage
from ..datasets.faults.folders import dead_links
from ..datasets.faults.walk import iter_datasets
from ..datasets.transforms.loading import exif_orientation
from ..errors import ConfigError, printable
from .report import claim, grouped_bars, plt, save
from .tables import markdown

#: Settings of the loading transforms that decide how a file is read.
READING = dict(
    image=('color_type', 'imdecode_backend', 'backend_args'),
    label=('imdecode_backend', 'backend_args'),
)


class Problem(NamedTuple):
    """Something that is wrong."""

    split: str
    file: str
    what: str


class Source(NamedTuple):
    """A dataset of a split, without its pipeline, and the settings with which that loads."""

    dataset: Any
    infos: list[dict[str, Any]]
    steps: dict[str, dict[str, Any]]


@dataclass
class Findings:
    """What the files of a split hold.

    Attributes:
        split: Name of the split.
        files: Images.
        labels: Labels that can be read.
        pixels: Pixels of each label value, ``(256,)``, after the dataset's ``reduce_zero_label``
            and ``label_map``; those of 255 are the ignored ones.
        images: Images in which each value occurs, ``(256,)``.
    """

    split: str
    files: int = 0
    labels: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))

    def shares(self, index: int) -> tuple[float, float]:
        """Share of the pixels and of the images that a label value has, in percent."""
        pixels = 100 * self.pixels[index] / max(1, self.pixels.sum())
        return float(pixels), float(100 * self.images[index] / max(1, self.labels))


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
    claim(path, Path(json) if json else None, force=force)
    sources = {split: open_sources(cfg, split) for split in chosen}
    first = sources[chosen[0]][0].dataset
    classes = list(first.metainfo.get('classes') or ())
    if not classes:
        raise ConfigError(f'{type(first).__name__} names no classes; set metainfo.classes.')

    problems: list[Problem] = []
    found = {split: Findings(split) for split in chosen}
    for split in chosen:
        for source in sources[split]:
            kind, root = type(source.dataset).__name__, source.dataset.data_root
            print(f'{split}: {kind} in {root}', file=sys.stderr)
            problems += check_source(source, found[split], workers)
    reduced = list(check_reduced(sources, found, len(classes)))
    if not reduced and 'train' in found:
        problems += check_absent(found['train'], classes)
    problems += reduced
    notes = list(find_notes(sources, found, classes))

    for split, findings in found.items():
        print(f'{split}: {findings.files} images, {findings.labels} labels that can be read')
    shares = [f'{split} {what} %' for split in found for what in ('pixels', 'images')]
    rows = [['class', *shares]]
    for index, name in [*enumerate(classes), (255, 'ignored')]:
        rows.append([name, *(f'{s:.2f}' for f in found.values() for s in f.shares(index))])
    print(f'\n{markdown(rows)}')
    draw(list(found.values()), classes, path)
    print(f'\nhistogram: {path}')
    if json:
        Path(json).write_text(json_.dumps(report(classes, found, problems, notes), indent=2) + '\n')
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


def open_sources(cfg: Config, split: str) -> list[Source]:
    """Open the datasets of a split, which wrappers may hold."""
    sources = []
    for leaf in iter_datasets(cfg[f'{split}_dataloader']['dataset']):
        with config_errors(cfg):
            dataset = DATASETS.build({**leaf, 'pipeline': [], 'lazy_init': False})
        steps = {}
        for step in leaf.get('pipeline', ()):
            name = str(step.get('type', ''))
            if name.startswith('Load'):
                steps['label' if 'Annotation' in name else 'image'] = dict(step)
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        sources.append(Source(dataset, infos, steps))
    return sources


def read(
    info: dict[str, Any], load_image: LoadSegImage, load_label: LoadSegAnnotations
) -> tuple[dict[str, str], np.ndarray | None]:
    """Read an image and its label.

    Args:
        info: What the dataset says about them.
        load_image: Reads the image.
        load_label: Reads the label.

    Returns:
        What is wrong, by file, and the number of pixels of every label value, ``(256,)``, or None
        without a label that can be read.
    """
    faults = {}
    results = dict(info)
    try:
        results = load_image(results)
        results.pop('img')
    except ValueError as error:
        faults[info['img_path']] = str(error).removeprefix(f'image {info["img_path"]} ')
    if 'seg_map_path' not in info:
        return faults, None
    try:
        label = load_label(results)['gt_seg_map']
    except ValueError as error:
        faults[info['seg_map_path']] = str(error).removeprefix(f'label {info["seg_map_path"]} ')
        return faults, None
    return faults, np.bincount(label.ravel(), minlength=256)


def check_source(source: Source, found: Findings, workers: int) -> Iterator[Problem]:
    """Check all files of a dataset.

    Args:
        source: The dataset.
        found: Its split, to which the pixels are added.
        workers: Threads.

    Yields:
        What is wrong.

    Raises:
        ConfigError: Its loading transforms cannot be set as the pipeline says.
    """
    dataset, infos, steps = source
    classes, ignored = len(dataset.metainfo.get('classes') or ()), dataset.ignore_index
    settings: dict[str, dict[str, Any]] = {
        kind: {key: steps[kind][key] for key in keys if key in steps.get(kind, {})}
        for kind, keys in READING.items()
    }
    try:
        load_image = LoadSegImage(**settings['image'])
        load_label = LoadSegAnnotations(**settings['label'])
    except ValueError as error:
        raise ConfigError(f'{found.split}_dataloader.dataset.pipeline: {error}') from error
    stated = steps.get('label', {}).get('reduce_zero_label')
    if stated not in (None, dataset.reduce_zero_label):
        what = f'is {stated} in {steps["label"]["type"]} but {dataset.reduce_zero_label} in the'
        what = f'reduce_zero_label {what} dataset; set it in the dataset only'
        yield Problem(found.split, '(config)', what)
    pixels, images = np.zeros_like(found.pixels), np.zeros_like(found.images)
    outside = {}
    known = set()
    bar = ProgressBar(len(infos), file=sys.stderr)
    with ThreadPoolExecutor(workers) as pool:
        for info, (faults, counts) in zip(
            infos, pool.map(lambda info: read(info, load_image, load_label), infos), strict=True
        ):
            for file, what in faults.items():
                known.add(file)
                yield Problem(found.split, file, what)
            if counts is not None:
                found.labels += 1
                pixels += counts
                images += counts > 0
                values = {v: int(counts[v]) for v in np.flatnonzero(counts).tolist()}
                beyond = {v: n for v, n in values.items() if v >= classes and v != ignored}
                if beyond:
                    outside[info['seg_map_path']] = beyond
            bar.update()
    print(file=sys.stderr)
    # No listing has dead links among its images, but a training stops at them.
    for link in (link for links in dead_links(dataset).values() for link in links):
        if link not in known:
            what = 'is a link that leads nowhere; fix or remove it'
            yield Problem(found.split, printable(link), what)
    hint = hint_at(outside, classes, dataset.reduce_zero_label, starts_at_1=not pixels[0])
    for file, values in outside.items():
        text = ', '.join(f'{value} ({count} pixels)' for value, count in values.items())
        what = f'holds {text}; allowed are 0 to {classes - 1}; {hint}'
        yield Problem(found.split, file, what)
    if classes <= ignored < 255:
        for counted in (pixels, images):
            counted[255], counted[ignored] = counted[ignored], 0
    found.files += len(infos)
    found.pixels += pixels
    found.images += images


def hint_at(
    outside: Mapping[str, Mapping[int, int]],
    classes: int,
    reduce_zero_label: bool,
    *,
    starts_at_1: bool,
) -> str:
    """What labels outside the classes, counted by file, hint at."""
    values = Counter(value for found in outside.values() for value in found)
    if set(values) == {classes} and not reduce_zero_label:
        start = (
            'the ids seem to start at 1'
            if starts_at_1
            else 'if 0 means unlabelled, the classes start at 1'
        )
        return f'{start}: set reduce_zero_label=True in the dataset'
    if min(values, default=0) == 254 and reduce_zero_label:
        return 'reduce_zero_label=True takes 1 from every id: 255 means ignored, 254 is no class'
    return 'convert original ids to class ids, or fix the classes'


def check_reduced(
    sources: Mapping[str, list[Source]], found: Mapping[str, Findings], classes: int
) -> Iterator[Problem]:
    """Whether reduce_zero_label was set for labels that start at 0 already."""
    reducing = {bool(s.dataset.reduce_zero_label) for split in sources.values() for s in split}
    if len(reducing) > 1:
        yield Problem('all', '(config)', 'reduce_zero_label differs between the datasets')
    pixels = sum(findings.pixels for findings in found.values())
    assert isinstance(pixels, np.ndarray)
    if reducing == {True} and pixels[:classes].any() and not pixels[classes - 1] and pixels[255]:
        share = 100 * pixels[255] / pixels.sum()
        yield Problem(
            'all',
            '(config)',
            f'with reduce_zero_label=True the last class never occurs and {share:.1f} % of the '
            'pixels are ignored: if the ids start at 0, set reduce_zero_label=False',
        )


def check_absent(train: Findings, classes: Sequence[str]) -> Iterator[Problem]:
    """Classes that never occur in training, where ignored pixels may be theirs."""
    absent = [name for index, name in enumerate(classes) if not train.pixels[index]]
    if not absent or not train.pixels[255]:
        return
    hint = (
        'the masks are saved as 0 and 255: convert 255 to 1'
        if set(np.flatnonzero(train.pixels)) == {0, 255}
        else 'if these are its pixels, convert them to its id (reduce_zero_label=True ignores 0), '
        'else take it out of the classes'
    )
    yield Problem(
        'train',
        '(config)',
        f'no pixel is of {", ".join(absent)}, but {train.shares(255)[0]:.1f} % of the pixels are '
        f'ignored; {hint}',
    )


def find_notes(
    sources: Mapping[str, list[Source]], found: Mapping[str, Findings], classes: Sequence[str]
) -> Iterator[str]:
    """What need not be wrong: shared images, images that viewers turn, classes never shown."""
    files = {
        split: {info['img_path'] for source in sources[split] for info in source.infos}
        for split in sources
    }
    for split in ('val', 'test'):
        common = files.get('train', set()) & files.get(split, set())
        if common:
            yield f'{len(common)} images of {split} are in train as well, e.g. {min(common)}'
    every = sorted(set().union(*files.values()))
    turned = [file for file in every if os.path.isfile(file) and exif_orientation(file) != 1]
    if turned:
        yield (
            f'{len(turned)} images have an EXIF orientation, e.g. {printable(turned[0])}: they '
            'are loaded as stored, so their labels have to lie as the stored pixels do'
        )
    for split, findings in found.items():
        absent = [name for index, name in enumerate(classes) if not findings.images[index]]
        if findings.labels and absent:
            yield f'{split} never shows {", ".join(absent)}'


def report(
    classes: Sequence[str],
    found: Mapping[str, Findings],
    problems: Sequence[Problem],
    notes: Sequence[str],
) -> dict[str, Any]:
    """All findings, for the JSON file."""
    splits = {
        split: dict(
            images=findings.files,
            labels=findings.labels,
            class_pixels=findings.pixels[: len(classes)].tolist(),
            class_images=findings.images[: len(classes)].tolist(),
            ignored_pixels=int(findings.pixels[255]),
        )
        for split, findings in found.items()
    }
    rows = [problem._asdict() for problem in problems]
    return dict(classes=classes, splits=splits, problems=rows, notes=notes)


def draw(found: Sequence[Findings], classes: Sequence[str], path: Path) -> None:
    """Draw the histogram."""
    names = [*classes, 'ignored']
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 1.2 + 0.32 * len(names)), sharey=True, layout='constrained'
    )
    for which, (axis, title) in enumerate(zip(axes, ('pixels', 'images'), strict=True)):
        bars = {
            f'{findings.split} ({findings.files} images)': [
                findings.shares(index)[which] for index in (*range(len(classes)), 255)
            ]
            for findings in found
        }
        grouped_bars(axis, bars, names, horizontal=True)
        axis.set(xlim=(0, 100), xlabel=f'% of the {title}')
        axis.grid(axis='x', alpha=0.3)
    axes[0].set_xscale('symlog', linthresh=0.1)
    axes[0].set_xlim(0, 100)
    axes[0].set_xticks([0, 0.1, 1, 10, 100], ['0', '0.1', '1', '10', '100'])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside upper center', ncols=3)
    save(figure, path)
