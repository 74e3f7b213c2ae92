"""Go through all files of a config's data before a training does.

Checks for every split that each image and label can be read, that they are of one size and that the
labels are single-channel maps of the classes, that each class occurs in training unless no pixel
is ignored there (masks saved as 0 and 255), and reduce_zero_label. Prints how often each class
occurs, draws it as a histogram, and ends with a table of what is wrong and exit code 1, or with
exit code 0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.utils import ProgressBar
from mmseg.registry import DATASETS

from mmseg_coop.analysis.report import claim, plt, save
from mmseg_coop.analysis.tables import markdown
from mmseg_coop.apis import check_data
from mmseg_coop.config import load_config
from mmseg_coop.datasets import LoadSegAnnotations, LoadSegImage
from mmseg_coop.datasets.faults.folders import dead_links
from mmseg_coop.datasets.faults.walk import build_unread, iter_datasets
from mmseg_coop.datasets.transforms.loading import exif_orientation
from mmseg_coop.errors import printable
from mmseg_coop_cli import short_errors

SPLITS = ('train', 'val', 'test')
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


class Findings(NamedTuple):
    """What the files of a split hold.

    ``pixels`` are those of each label value (256), ``images`` those in which it occurs (256), after
    the dataset's reduce_zero_label and label_map; ignored pixels are those of 255.
    """

    files: int
    labels: int
    pixels: np.ndarray
    images: np.ndarray
    problems: list[Problem]
    outside: list[tuple[str, dict[int, int]]]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config whose data are checked')
    parser.add_argument(
        '--splits', nargs='+', choices=SPLITS, default=SPLITS, help='default: all of the config'
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='PNG',
        help='histogram of the classes; default: check_dataset.png in the work directory of the '
        'config',
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write all findings here')
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    parser.add_argument(
        '--show', type=int, default=20, metavar='N', help='rows of problems; 0: all; default: 20'
    )
    parser.add_argument(
        '--workers', type=int, default=min(8, os.cpu_count() or 1), help='threads that read files'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    args = parser.parse_args()
    if args.workers < 1:
        parser.error(f'--workers has to be at least 1, not {args.workers}')
    if args.show < 0:
        parser.error(f'--show has to be at least 0, not {args.show}')
    if args.out is not None and args.out.suffix != '.png':
        parser.error(f'--out takes the name of a .png file, not {str(args.out)!r}')
    return args


def loading_steps(pipeline: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Settings of the transforms that load the image and the label, as the pipeline has them."""
    steps: dict[str, dict[str, Any]] = {}
    for step in pipeline:
        name = str(step.get('type', ''))
        if name.startswith('Load'):
            steps['label' if 'Annotation' in name else 'image'] = dict(step)
    return steps


def check_file(
    info: dict[str, Any], load_image: LoadSegImage, load_label: LoadSegAnnotations
) -> tuple[list[tuple[str, str]], np.ndarray | None]:
    """Read an image and its label.

    Args:
        info: What the dataset says about them.
        load_image: Reads the image.
        load_label: Reads the label.

    Returns:
        Files at fault, each with its fault, and the number of pixels of every label value (256), or
        None without a label that can be read.
    """
    faults = []
    results = dict(info)
    try:
        results = load_image(results)
        results.pop('img')
    except ValueError as error:
        faults.append((info['img_path'], str(error)))
    if 'seg_map_path' not in info:
        return faults, None
    try:
        label = load_label(results)['gt_seg_map']
    except ValueError as error:
        return [*faults, (info['seg_map_path'], str(error))], None
    return faults, np.bincount(label.ravel(), minlength=256)


def check_leaf(cfg: Any, split: str, workers: int) -> Findings:
    """Check all files of a dataset.

    Args:
        cfg: Config of the dataset, which is no wrapper.
        split: Name of the split, for the messages.
        workers: Threads.
    """
    dataset = DATASETS.build({**cfg, 'pipeline': [], 'lazy_init': False})
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    classes = dataset.metainfo['classes'] or ()
    steps = loading_steps(cfg.get('pipeline', ()))
    settings: dict[str, dict[str, Any]] = {
        kind: {key: steps[kind][key] for key in keys if key in steps.get(kind, {})}
        for kind, keys in READING.items()
    }
    load_image = LoadSegImage(**settings['image'])
    load_label = LoadSegAnnotations(**settings['label'])
    problems = [
        Problem(split, '(config)', what)
        for what in config_faults(dataset, steps.get('label', {}), len(classes))
    ]
    found = Findings(len(infos), 0, np.zeros(256, np.int64), np.zeros(256, np.int64), problems, [])
    labels = 0
    bar = ProgressBar(len(infos), file=sys.stderr)
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda info: check_file(info, load_image, load_label), infos)
        for info, (faults, counts) in zip(infos, results, strict=True):
            problems += [Problem(split, file, shorten(what, file)) for file, what in faults]
            if counts is not None:
                labels += 1
                found.pixels[:] += counts
                found.images[:] += counts > 0
                values = np.flatnonzero(counts).tolist()
                outside = {
                    v: int(counts[v])
                    for v in values
                    if v >= len(classes) and v != dataset.ignore_index
                }
                if outside:
                    found.outside.append((info['seg_map_path'], outside))
            bar.update()
    print(file=sys.stderr)
    # No listing has dead links among its images, but a training stops at them.
    known = {problem.file for problem in problems}
    problems += [
        Problem(split, printable(link), 'is a link that leads nowhere; fix or remove it')
        for links in dead_links(dataset).values()
        for link in links
        if link not in known
    ]
    problems += outside_problems(split, found, len(classes), dataset.reduce_zero_label)
    if len(classes) <= dataset.ignore_index < 255:
        for counts in (found.pixels, found.images):
            counts[255], counts[dataset.ignore_index] = counts[dataset.ignore_index], 0
    return found._replace(labels=labels)


def config_faults(dataset: Any, label_step: dict[str, Any], classes: int) -> Iterator[str]:
    """What a dataset's settings contradict; the model's classes are checked with the config."""
    stated = label_step.get('num_classes')
    if stated is not None and stated != classes:
        yield (
            f'the dataset has {classes} classes, num_classes of {label_step["type"]} is {stated}; '
            'make them equal'
        )
    stated = label_step.get('reduce_zero_label')
    if stated is not None and stated != dataset.reduce_zero_label:
        yield (
            f'reduce_zero_label is {stated} in {label_step["type"]} but '
            f'{dataset.reduce_zero_label} in the dataset; set it in the dataset only'
        )


def outside_problems(
    split: str, found: Findings, classes: int, reduce_zero_label: bool
) -> Iterator[Problem]:
    """Labels outside the classes, with what they hint at."""
    values: Counter[int] = Counter()
    for _, outside in found.outside:
        values.update(outside)
    if set(values) == {classes} and not reduce_zero_label:
        start = (
            'the ids seem to start at 1'
            if not found.pixels[0]
            else 'if 0 means unlabelled, the classes start at 1'
        )
        hint = f'{start}: set reduce_zero_label=True in the dataset'
    elif min(values, default=0) == 254 and reduce_zero_label:
        hint = 'reduce_zero_label=True takes 1 from every id: 255 means ignored, 254 is no class'
    else:
        hint = 'convert original ids to class ids, or correct the classes'
    for file, outside in found.outside:
        text = ', '.join(f'{value} ({count} pixels)' for value, count in outside.items())
        yield Problem(split, file, f'holds {text}; allowed are 0 to {classes - 1}; {hint}')


def shorten(message: str, file: str) -> str:
    """Leave out of a message what the table's column says: which file."""
    for kind in ('image', 'label'):
        message = message.removeprefix(f'{kind} {file} ')
    return message


def add(one: Findings, other: Findings) -> Findings:
    """Findings of two datasets of a split together."""
    return Findings(
        one.files + other.files,
        one.labels + other.labels,
        one.pixels + other.pixels,
        one.images + other.images,
        one.problems + other.problems,
        one.outside + other.outside,
    )


def check_reduced(cfg: Config, found: dict[str, Findings], classes: int) -> Iterator[Problem]:
    """Whether reduce_zero_label was set for labels that start at 0 already."""
    reducing = {
        bool(dataset.reduce_zero_label)
        for split in found
        for dataset in datasets(cfg[f'{split}_dataloader']['dataset'])
    }
    if len(reducing) > 1:
        yield Problem('all', '(config)', 'reduce_zero_label differs between the datasets')
    if reducing != {True} or not any(f.labels for f in found.values()):
        return
    pixels = np.sum([findings.pixels for findings in found.values()], axis=0)
    if not pixels[classes - 1] and pixels[:classes].any() and pixels[255]:
        share = 100 * pixels[255] / pixels.sum()
        yield Problem(
            'all',
            '(config)',
            f'with reduce_zero_label=True the last class never occurs and {share:.1f} % of the '
            'pixels are ignored: if the ids start at 0, set reduce_zero_label=False',
        )


def check_absent(train: Findings, classes: list[str]) -> Iterator[Problem]:
    """Classes that never occur in training, where ignored pixels may be theirs."""
    pixels = train.pixels
    absent = [name for index, name in enumerate(classes) if not pixels[index]]
    if not absent or not pixels[255]:
        return
    hint = (
        'the masks are saved as 0 and 255: convert 255 to 1'
        if set(np.flatnonzero(pixels)) == {0, 255}
        else 'if these are its pixels, convert them to its id (reduce_zero_label=True ignores 0), '
        'else take it out of the classes'
    )
    yield Problem(
        'train',
        '(config)',
        f'no pixel is of {", ".join(absent)}, but {100 * pixels[255] / pixels.sum():.1f} % of the '
        f'pixels are ignored; {hint}',
    )


def datasets(cfg: Any) -> Iterator[Any]:
    """Datasets inside a config's wrappers, without their pipelines and lists of files."""
    for leaf in iter_datasets(cfg):
        yield build_unread(leaf)


def check_leaks(found: dict[str, set[str]]) -> Iterator[str]:
    """Images that are trained on and evaluated on."""
    for split in ('val', 'test'):
        common = found.get('train', set()) & found.get(split, set())
        if common:
            yield f'{len(common)} images of {split} are in train as well, e.g. {min(common)}'


def check_orientation(files: set[str]) -> Iterator[str]:
    """Images that viewers turn, and the loading does not."""
    turned = [file for file in files if os.path.isfile(file) and exif_orientation(file) != 1]
    if turned:
        yield (
            f'{len(turned)} images have an EXIF orientation, e.g. {printable(min(turned))}: they '
            'are loaded as stored, so their labels have to lie as the stored pixels do'
        )


def image_files(cfg: Any) -> set[str]:
    """Paths of a split's images."""
    return {info['img_path'] for data in datasets(cfg) for info in data.load_data_list()}


def frequency_table(found: dict[str, Findings], classes: list[str]) -> str:
    """Share of pixels and images of each class, by split."""
    rows = [['class', *(f'{split} {what} %' for split in found for what in ('pixels', 'images'))]]
    for index, name in [*enumerate(classes), (255, 'ignored')]:
        row = [name]
        for findings in found.values():
            row += [f'{100 * share:.2f}' for share in shares(findings, index)]
        rows.append(row)
    return markdown(rows)


def shares(findings: Findings, index: int) -> tuple[float, float]:
    """Share of the pixels and of the images that a label value has."""
    pixels, images = findings.pixels, findings.images
    return float(pixels[index] / max(1, pixels.sum())), float(
        images[index] / max(1, findings.labels)
    )


def draw(found: dict[str, Findings], classes: list[str], path: Path) -> None:
    """Draw the histogram."""
    names = [*classes, 'ignored']
    indices = [*range(len(classes)), 255]
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 1.2 + 0.32 * len(names)), sharey=True, layout='constrained'
    )
    height = 0.8 / len(found)
    for which, (axis, title) in enumerate(zip(axes, ('pixels', 'images'), strict=True)):
        for number, (split, findings) in enumerate(found.items()):
            values = [100 * shares(findings, index)[which] for index in indices]
            places = np.arange(len(names)) + (number - (len(found) - 1) / 2) * height
            axis.barh(places, values, height, label=f'{split} ({findings.files} images)')
        axis.set_xlabel(f'% of the {title}')
        axis.grid(axis='x', alpha=0.3)
    axes[0].set_xscale('symlog', linthresh=0.1)
    axes[0].set_xlim(0, 100)
    axes[0].set_xticks([0, 0.1, 1, 10, 100], ['0', '0.1', '1', '10', '100'])
    axes[1].set_xlim(0, 100)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside upper center', ncols=3)
    save(figure, path)


def class_names(cfg: Config, splits: list[str]) -> list[str]:
    """Classes of the first dataset."""
    dataset = next(datasets(cfg[f'{splits[0]}_dataloader']['dataset']))
    if not dataset.metainfo.get('classes'):
        raise ValueError(f'{type(dataset).__name__} names no classes; set metainfo.classes.')
    return list(dataset.metainfo['classes'])


def main() -> None:
    """Check, print, draw."""
    args = parse_args()
    with short_errors():
        cfg = load_config(args.config, cfg_options=args.cfg_options)
        out = args.out or Path(cfg.work_dir, 'check_dataset.png')
        splits = [split for split in args.splits if cfg.get(f'{split}_dataloader') is not None]
        if not splits:
            raise ValueError(f'{args.config} has no data of {" or ".join(args.splits)}.')
        # Links that stand for single files and lead nowhere go into the table with the others.
        check_data(cfg, splits=tuple(splits), data_faults='skip')
        claim(*filter(None, (out, args.json)), force=args.force)
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        classes = class_names(cfg, splits)
        found: dict[str, Findings] = {}
        for split in splits:
            for leaf in iter_datasets(cfg[f'{split}_dataloader']['dataset']):
                print(f'{split}: {leaf["type"]} in {leaf.get("data_root")}', file=sys.stderr)
                new = check_leaf(leaf, split, args.workers)
                found[split] = add(found[split], new) if split in found else new
        files = {split: image_files(cfg[f'{split}_dataloader']['dataset']) for split in splits}

    problems = [problem for findings in found.values() for problem in findings.problems]
    reduced = list(check_reduced(cfg, found, len(classes)))
    if not reduced and 'train' in found:
        problems += check_absent(found['train'], classes)
    problems += reduced
    notes = [*check_leaks(files), *check_orientation(set().union(*files.values()))]
    for split, findings in found.items():
        absent = [name for i, name in enumerate(classes) if not findings.images[i]]
        if findings.labels and absent:
            notes.append(f'{split} never shows {", ".join(absent)}')
        print(f'{split}: {findings.files} images, {findings.labels} labels that can be read')
    print('\n' + frequency_table(found, classes))
    draw(found, classes, out)
    print(f'\nhistogram: {out}')
    if args.json:
        report = dict(
            classes=classes,
            splits={
                split: dict(
                    images=findings.files,
                    labels=findings.labels,
                    class_pixels=findings.pixels[: len(classes)].tolist(),
                    class_images=findings.images[: len(classes)].tolist(),
                    ignored_pixels=int(findings.pixels[255]),
                )
                for split, findings in found.items()
            },
            problems=[problem._asdict() for problem in problems],
            notes=notes,
        )
        args.json.write_text(json.dumps(report, indent=2) + '\n')
    for note in notes:
        print(f'note: {note}')
    if not problems:
        print('nothing is wrong')
        return
    shown = problems[: args.show or None]
    print(f'\n{len(problems)} problems\n')
    print(markdown([Problem._fields, *shown]))
    if len(problems) > len(shown):
        print(f'and {len(problems) - len(shown)} more (--show 0, or --json FILE, gives all)')
    sys.exit(1)


if __name__ == '__main__':
    main()
