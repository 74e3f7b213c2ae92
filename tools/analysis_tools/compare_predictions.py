"""Input, ground truth and the outputs of any number of models in one grid a frame.

The last panel shows where only the one, only the other, both or neither of two networks are right.
Frames are chosen by name, or as those on which these two networks disagree most. Each model
predicts the images of its own test_dataloader, prepared by its own pipeline.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import DictAction
from mmengine.dataset import pseudo_collate
from mmengine.utils import ProgressBar
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample

from mmseg_coop.apis import check_data
from mmseg_coop.apis.model import load_model
from mmseg_coop.config import load_config
from mmseg_coop.visualization.panels import fit_centre, grid, label_maps, legend, overlay
from mmseg_coop_cli import short_errors

ALPHA = 0.8  # share of the classes' colours; the rest is the image
#: Of the map: both right, only the first, only the second, neither. RGB; colour-blind people can
#: tell them apart.
COLORS = ((225, 225, 225), (230, 159, 0), (0, 114, 178), (204, 121, 167))
EPILOG = """an output is named OUTPUT (of the first model) or NUMBER:OUTPUT, where NUMBER counts the
models from 1. Example: where two single networks fail, and what their cooperation makes of it

  compare_predictions.py --model R101.py r101.pth --model X65.py x65.pth
    --model PAIR.py pair.pth ensemble --between 1:r101 2:x65 --most-different 8 --out pictures
"""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--model',
        nargs='+',
        action='append',
        required=True,
        dest='models',
        metavar='WORD',
        help='CONFIG CHECKPOINT [OUTPUT,OUTPUT]: a model, and which of its outputs to show; '
        'default: all. May be repeated',
    )
    frames = parser.add_mutually_exclusive_group(required=True)
    frames.add_argument(
        '--frames', nargs='+', metavar='NAME', help='names of images, without folder and ending'
    )
    frames.add_argument(
        '--most-different', type=int, metavar='K', help='the K frames with the largest disagreement'
    )
    parser.add_argument(
        '--between',
        nargs=2,
        metavar='OUTPUT',
        help='the two networks to compare; default: the first two of the first model with several, '
        'or else of the first two models',
    )
    parser.add_argument('--out', required=True, type=Path, metavar='DIR', help='folder to write to')
    parser.add_argument('--force', action='store_true', help='write into DIR though it holds files')
    parser.add_argument('--columns', type=int, default=4, help='panels in a row; default: 4')
    parser.add_argument(
        '--panel-width',
        type=int,
        default=640,
        metavar='PIXELS',
        help='wider panels are shrunk to it; default: 640',
    )
    parser.add_argument('--device', help='cpu, cuda or cuda:N; default: cuda where there is one')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override values of all configs, e.g. test_dataloader.dataset.data_root=DIR',
    )
    args = parser.parse_args()
    try:
        device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    except RuntimeError:
        parser.error(f'--device takes cpu, cuda or cuda:N, not {args.device!r}')
    if device.type == 'cuda' and not torch.cuda.is_available():
        parser.error('torch finds no CUDA device here; use --device cpu')
    args.device = str(device)
    for words in args.models:
        if not 2 <= len(words) <= 3:
            given = ' '.join(words)
            parser.error(f'--model takes CONFIG CHECKPOINT [OUTPUT,OUTPUT], not {given!r}')
    for name in ('most_different', 'columns', 'panel_width'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name.replace("_", "-")} has to be at least 1')
    return args


class Subject:
    """A model with its checkpoint and its test data.

    Args:
        config: Config file.
        checkpoint: Checkpoint file.
        outputs: Outputs to show, separated by commas; empty for all.
        cfg_options: Values that override the config's, by dotted key.
        device: Where it runs.

    Raises:
        FileNotFoundError: A file or the data do not exist.
        ValueError: The checkpoint does not fit, or an output is unknown.
    """

    def __init__(
        self,
        config: str,
        checkpoint: str,
        outputs: str = '',
        *,
        cfg_options: dict[str, Any] | None,
        device: str,
    ) -> None:
        cfg = load_config(config, cfg_options=cfg_options)
        check_data(cfg, splits=('test',))
        self.name = '_'.join(Path(config).stem.split('_')[:2])
        self.model: Any = load_model(cfg, checkpoint, device=device)
        self.dataset = DATASETS.build(cfg.test_dataloader.dataset)
        self.frames = {
            Path(self.dataset.get_data_info(index)['img_path']).stem: index
            for index in range(len(self.dataset))
        }
        if len(self.frames) < len(self.dataset):
            raise ValueError(f'the test data of {config!r} have images of the same name.')
        #: Names of all outputs, and of those to show.
        self.outputs: tuple[str, ...] = getattr(self.model, 'output_names', ('prediction',))
        self.shown = tuple(outputs.split(',')) if outputs else self.outputs
        for output in self.shown:
            self.check_output(output)

    def check_output(self, output: str) -> None:
        """Refuse the name of an output that the model does not have."""
        if output not in self.outputs:
            raise ValueError(
                f'{self.name} has no output {output!r}; it has {", ".join(self.outputs)}.'
            )

    @property
    def networks(self) -> tuple[str, ...]:
        """Outputs of single networks."""
        return tuple(output for output in self.outputs if output != 'ensemble')

    def predict(self, frame: str) -> SegDataSample:
        """Predict a frame.

        Args:
            frame: Name of the image.

        Returns:
            The sample, with its ground truth.
        """
        data = pseudo_collate([self.dataset[self.frames[frame]]])
        with torch.inference_mode():
            sample: SegDataSample = self.model.test_step(data)[0]
        return sample


class Output(NamedTuple):
    """An output of one of the models, counted from 0."""

    model: int
    name: str


class Frame(NamedTuple):
    """The label maps ``(H, W)`` of a frame: its truth, and every output of the models asked for."""

    image_path: str
    truth: np.ndarray[Any, Any]
    outputs: dict[Output, np.ndarray[Any, Any]]


def two_outputs(words: list[str] | None, subjects: list[Subject]) -> tuple[Output, Output] | None:
    """Find the two outputs to compare.

    Args:
        words: How the user has named them, None for the default.
        subjects: The models.

    Returns:
        The two, or None where there is only one network.

    Raises:
        ValueError: One of them does not exist.
    """
    if words is None:
        for index, subject in enumerate(subjects):
            if len(subject.networks) > 1:
                return Output(index, subject.networks[0]), Output(index, subject.networks[1])
        firsts = [Output(index, subject.outputs[0]) for index, subject in enumerate(subjects)]
        return (firsts[0], firsts[1]) if len(firsts) > 1 else None
    pair = []
    for word in words:
        number, colon, name = word.rpartition(':')
        if colon and not (number.isdigit() and 1 <= int(number) <= len(subjects)):
            raise ValueError(
                f'--between takes OUTPUT or NUMBER:OUTPUT with a number from 1 to {len(subjects)}, '
                f'not {word!r}.'
            )
        output = Output(int(number) - 1 if colon else 0, name)
        subjects[output.model].check_output(name)
        pair.append(output)
    return pair[0], pair[1]


def check_models(subjects: list[Subject], frames: list[str] | None) -> None:
    """Check that the models speak of the same classes and images.

    Args:
        subjects: The models.
        frames: Names of images that all of them need; None for all of the first model's.

    Raises:
        ValueError: They do not.
    """
    first = subjects[0]
    for subject in subjects:
        classes = (first.dataset.metainfo['classes'], subject.dataset.metainfo['classes'])
        if list(classes[0]) != list(classes[1]):
            raise ValueError(
                f'{subject.name} has other classes than {first.name}: {list(classes[1])}, not '
                f'{list(classes[0])}.'
            )
        for frame in frames if frames is not None else first.frames:
            if frame not in subject.frames:
                similar = difflib.get_close_matches(frame, subject.frames, n=3)
                hint = f' Did you mean {" or ".join(similar)}?' if similar else ''
                raise ValueError(
                    f'the test data of {subject.name} have no frame {frame!r}; they have '
                    f'{len(subject.frames)} frames.{hint}'
                )


def read_frame(subjects: list[Subject], name: str, models: Iterable[int]) -> Frame:
    """Predict a frame; ends the program where the models are evaluated in different ways.

    Args:
        subjects: The models.
        name: Its name.
        models: Which of the models to ask.

    Returns:
        Truth and outputs.
    """
    truth = None
    outputs = {}
    for index in models:
        sample = subjects[index].predict(name)
        maps = label_maps(sample)
        with short_errors():
            if 'ground truth' not in maps:
                raise ValueError(
                    f'the test pipeline of {subjects[index].name} loads no labels; add '
                    'LoadAnnotations.'
                )
            own = maps.pop('ground truth')
            truth = own if truth is None else truth
            for output, label_map in maps.items():
                if label_map.shape != truth.shape:
                    raise ValueError(
                        f'{subjects[index].name} predicts {name} at {label_map.shape} pixels, but '
                        f'the labels have {truth.shape}: use configs with the same test pipeline.'
                    )
                outputs[Output(index, output)] = label_map
    assert truth is not None
    return Frame(sample.img_path, truth, outputs)


def disagreement(frame: Frame, pair: tuple[Output, Output], num_classes: int) -> float:
    """Share of the labelled pixels on which two outputs differ, 0 to 1."""
    first, second = (frame.outputs[output] for output in pair)
    labelled = frame.truth < num_classes
    return float((first != second)[labelled].mean()) if labelled.any() else 0.0


def who_is_right(
    first: np.ndarray[Any, Any],
    second: np.ndarray[Any, Any],
    truth: np.ndarray[Any, Any],
    num_classes: int,
) -> tuple[np.ndarray[Any, Any], list[float]]:
    """Map where both, only one or neither of two outputs are right.

    Args:
        first: Label map, ``(H, W)``.
        second: Label map, ``(H, W)``.
        truth: Label map, ``(H, W)``; labels outside the classes are ignored and stay black.
        num_classes: Number of classes.

    Returns:
        The map, ``(H, W, 3)``, RGB; and the shares of the labelled pixels, 0 to 1: both, only the
        first, only the second, neither.
    """
    labelled = truth < num_classes
    first_right, second_right = first == truth, second == truth
    areas = [
        first_right & second_right,
        first_right & ~second_right,
        ~first_right & second_right,
        ~first_right & ~second_right,
    ]
    picture = np.zeros((*truth.shape, 3), np.uint8)
    shares = []
    for area, color in zip(areas, COLORS, strict=True):
        picture[area & labelled] = color
        shares.append(float((area & labelled).sum() / max(1, labelled.sum())))
    return picture, shares


def title_of(output: Output, subjects: list[Subject]) -> str:
    """How an output is called in pictures and tables."""
    return output.name if len(subjects) == 1 else f'{output.model + 1}:{output.name}'


def shrink(panel: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Bring a panel ``(H, W, 3)`` that is wider than ``width`` to it."""
    if panel.shape[1] <= width:
        return panel
    size = (width, max(1, round(panel.shape[0] * width / panel.shape[1])))
    return cv2.resize(panel, size, interpolation=cv2.INTER_AREA)


def draw(
    frame: Frame,
    subjects: list[Subject],
    pair: tuple[Output, Output] | None,
    *,
    columns: int,
    panel_width: int,
) -> tuple[np.ndarray[Any, Any], list[float]]:
    """Draw a frame.

    Args:
        frame: Truth and outputs of all models.
        subjects: The models.
        pair: The outputs that the map compares; None for no map.
        columns: Panels in a row.
        panel_width: Wider panels are shrunk to it, in pixels.

    Returns:
        The picture, ``(H, W, 3)``, RGB; and the shares of the map, if there is one.
    """
    classes, palette = (subjects[0].dataset.metainfo[key] for key in ('classes', 'palette'))
    image = mmcv.bgr2rgb(mmcv.imread(frame.image_path, flag='color_ignore_orientation'))
    panels = {
        'input': fit_centre(image, frame.truth.shape),
        'ground truth': overlay(image, frame.truth, palette, alpha=ALPHA),
    }
    for output, label_map in frame.outputs.items():
        subject = subjects[output.model]
        if output.name in subject.shown:
            title = title_of(output, subjects)
            title += f' {subject.name}' if len(subjects) > 1 else ''
            panels[title] = overlay(image, label_map, palette, alpha=ALPHA)
    keys = [(classes, palette)]
    shares: list[float] = []
    if pair is not None:
        one, other = (title_of(output, subjects) for output in pair)
        first, second = (frame.outputs[output] for output in pair)
        picture, shares = who_is_right(first, second, frame.truth, len(classes))
        panels[f'who is right: {one}, {other}'] = picture
        names = ('both right', f'only {one} right', f'only {other} right', 'neither right')
        texts = [f'{name} {share:.1%}' for name, share in zip(names, shares, strict=True)]
        keys.append(([*texts, 'not labelled'], [*COLORS, (0, 0, 0)]))
    panels = {title: shrink(panel, panel_width) for title, panel in panels.items()}
    whole = grid(panels, columns=columns)
    parts = [legend(names, colors, whole.shape[1]) for names, colors in keys]
    return np.concatenate([whole, *parts]), shares


def most_different(subjects: list[Subject], pair: tuple[Output, Output], count: int) -> list[str]:
    """Find the frames on which two outputs disagree most.

    Args:
        subjects: The models; the frames are the first one's.
        pair: The outputs.
        count: Number of frames.

    Returns:
        Names of frames, the largest disagreement first.
    """
    num_classes = len(subjects[0].dataset.metainfo['classes'])
    models = sorted({output.model for output in pair})
    found = {}
    progress = ProgressBar(len(subjects[0].frames), file=sys.stderr)
    for name in sorted(subjects[0].frames):
        found[name] = disagreement(read_frame(subjects, name, models), pair, num_classes)
        progress.update()
    print(file=sys.stderr)
    return sorted(found, key=lambda name: -found[name])[:count]


def check_out(out: Path, *, force: bool) -> None:
    """Refuse a folder that holds files.

    Args:
        out: The folder.
        force: Whether it may hold some.

    Raises:
        FileExistsError: It does, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f'--out {str(out)!r} is a file; give a folder.')
    if out.is_dir() and any(out.iterdir()) and not force:
        raise FileExistsError(
            f'--out {str(out)!r} holds files; choose another folder, or add --force to overwrite '
            'the pictures of the same frames.'
        )


def main() -> None:
    """Predict, choose and draw."""
    args = parse_args()
    with short_errors():
        check_out(args.out, force=args.force)
        subjects = [
            Subject(*words, cfg_options=args.cfg_options, device=args.device)
            for words in args.models
        ]
        pair = two_outputs(args.between, subjects)
        if pair is None and args.most_different is not None:
            raise ValueError('--most-different needs two networks; add another --model.')
        check_models(subjects, args.frames)
    if args.frames is not None:
        names = list(dict.fromkeys(args.frames))
    else:
        assert pair is not None
        names = most_different(subjects, pair, args.most_different)

    for number, words in enumerate(args.models, start=1):
        print(f'{number}: {words[0]}, {words[1]}')
    header = ['frame', 'picture']
    if pair is not None:
        one, other = (title_of(output, subjects) for output in pair)
        header += ['disagreement (%)', 'both right (%)', f'only {one} right (%)']
        header += [f'only {other} right (%)', 'neither right (%)']
    print('\n| ' + ' | '.join(header) + ' |')
    print('|' + ' --- |' * 2 + ' ---: |' * (len(header) - 2))
    for name in names:
        frame = read_frame(subjects, name, range(len(subjects)))
        picture, shares = draw(
            frame, subjects, pair, columns=args.columns, panel_width=args.panel_width
        )
        file = args.out / f'{name}.png'
        mmcv.imwrite(mmcv.rgb2bgr(picture), str(file))
        figures = list(shares)
        if pair is not None:
            num_classes = len(subjects[0].dataset.metainfo['classes'])
            figures.insert(0, disagreement(frame, pair, num_classes))
        cells = [name, str(file), *(f'{100 * figure:.2f}' for figure in figures)]
        print('| ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
    main()
