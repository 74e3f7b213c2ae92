"""Draws the outputs of any number of models in one grid a frame, and where two are right."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.utils import track_iter_progress
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample

from ..apis.model import choose_outputs
from ..errors import ConfigError, did_you_mean
from ..visualization.panels import fit_centre, grid, legend, overlay
from .evaluate import maps_of, open_model
from .tables import markdown

ALPHA = 0.8  # share of the classes' colours; the rest is the image
#: Of the map: both right, only the first, only the second, neither. RGB; colour-blind people can
#: tell them apart.
COLORS = ((225, 225, 225), (230, 159, 0), (0, 114, 178), (204, 121, 167))


def compare_predictions(
    models: Sequence[Sequence[str]],
    *,
    out: str,
    frames: Sequence[str] | None = None,
    most_different: int | None = None,
    between: Sequence[str] | None = None,
    force: bool = False,
    columns: int = 4,
    panel_width: int = 640,
    **options: Any,
) -> None:
    """Draw input, truth and outputs of frames, and print where two outputs are right.

    Args:
        models: Config, checkpoint and, if not all are to be shown, outputs joined by commas.
        out: Folder.
        frames: Names of images. Defaults to None: those that ``most_different`` finds.
        most_different: How many of the frames with the largest disagreement. Defaults to None.
        between: The two outputs to compare, ``OUTPUT`` of the first model or ``NUMBER:OUTPUT``.
            Defaults to None: of the first model with several networks, or of the first two models.
        force: Whether the folder may hold files. Defaults to False.
        columns: Panels in a row. Defaults to 4.
        panel_width: Wider panels are shrunk to it, in pixels. Defaults to 640.
        **options: As of :func:`open_model`, for all models.

    Raises:
        ConfigError: An output or a frame does not fit.
        CoopError: See :func:`open_model`.
        OSError: A file cannot be read, or the folder holds files.
    """
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise FileExistsError(
            f'{out!r} holds files; add --force to replace those of the same frames, or name '
            'another place.'
        )
    subjects = [Subject(*words, **options) for words in models]
    pair = two_outputs(between, subjects)
    check_models(subjects, frames)
    if frames is not None:
        names = list(dict.fromkeys(frames))
    elif pair is None:
        raise ConfigError('--most-different needs two networks; add another --model.')
    else:
        names = most_different_frames(subjects, pair, most_different)
    folder.mkdir(parents=True, exist_ok=True)

    cases = ['disagreement', *cases_of(pair, subjects)] if pair is not None else []
    rows = [['frame', 'figure', *(f'{case} (%)' for case in cases)]]
    for name in names:
        frame = read_frame(subjects, name, range(len(subjects)))
        image, shares = draw(frame, subjects, pair, columns=columns, panel_width=panel_width)
        file = str(folder / f'{name}.png')
        mmcv.imwrite(mmcv.rgb2bgr(image), file)
        if pair is not None:
            shares = [disagreement(frame, pair, len(subjects[0].classes)), *shares]
        rows.append([name, file, *(f'{100 * share:.2f}' for share in shares)])
    for number, words in enumerate(models, start=1):
        print(f'{number}: {words[0]}, {words[1]}')
    print('\n' + markdown(rows, range(2, len(rows[0]))))


class Output(NamedTuple):
    """An output of one of the models, counted from 0."""

    model: int
    name: str


class Frame(NamedTuple):
    """The label maps ``(H, W)`` of a frame: its truth, and every output of the models asked for."""

    image_path: str
    truth: np.ndarray
    outputs: dict[Output, np.ndarray]


class Subject:
    """A model with its checkpoint, its test data and the outputs to show, joined by commas."""

    def __init__(self, config: str, checkpoint: str, outputs: str = '', **options: Any) -> None:
        self.name = '_'.join(Path(config).stem.split('_')[:2])
        self.model = open_model(config, checkpoint, **options)
        self.dataset = DATASETS.build(self.model.cfg.test_dataloader.dataset)
        self.classes = list(self.dataset.metainfo['classes'])
        self.frames = {
            Path(self.dataset.get_data_info(index)['img_path']).stem: index
            for index in range(len(self.dataset))
        }
        if len(self.frames) < len(self.dataset):
            raise ConfigError(f'the test data of {config!r} have images of the same name.')
        #: Names of all outputs, and of those to show.
        self.outputs = choose_outputs(self.model)
        self.shown = choose_outputs(self.model, outputs.split(',') if outputs else None)

    def predict(self, frame: str) -> SegDataSample:
        """Predict a frame; the sample has its ground truth."""
        with torch.inference_mode():
            data = pseudo_collate([self.dataset[self.frames[frame]]])
            sample: SegDataSample = self.model.test_step(data)[0]
        return sample


def two_outputs(
    words: Sequence[str] | None, subjects: Sequence[Subject]
) -> tuple[Output, Output] | None:
    """Find the two outputs to compare, as the user has named them; None for a single network."""
    if words is None:
        firsts = [Output(index, subject.outputs[0]) for index, subject in enumerate(subjects)]
        for index, subject in enumerate(subjects):
            networks = [output for output in subject.outputs if output != 'ensemble']
            if len(networks) > 1:
                firsts = [Output(index, network) for network in networks]
                break
        return (firsts[0], firsts[1]) if len(firsts) > 1 else None
    pair = []
    for word in words:
        number, colon, name = word.rpartition(':')
        if colon and not (number.isdigit() and 1 <= int(number) <= len(subjects)):
            raise ConfigError(
                f'--between takes OUTPUT or NUMBER:OUTPUT with a number from 1 to {len(subjects)}, '
                f'not {word!r}.'
            )
        output = Output(int(number) - 1 if colon else 0, name)
        choose_outputs(subjects[output.model].model, [name])  # refuses what it does not have
        pair.append(output)
    return pair[0], pair[1]


def check_models(subjects: Sequence[Subject], frames: Sequence[str] | None) -> None:
    """Refuse models of other classes, and without the images asked for or the first one has."""
    first = subjects[0]
    for subject in subjects:
        if subject.classes != first.classes:
            raise ConfigError(
                f'{subject.name} has other classes than {first.name}: {subject.classes}, not '
                f'{first.classes}.'
            )
        for frame in frames if frames is not None else first.frames:
            if frame not in subject.frames:
                hint = did_you_mean(frame, subject.frames, ' Did you mean {}?')
                raise ConfigError(
                    f'the test data of {subject.name} have no frame {frame!r}; they have '
                    f'{len(subject.frames)} frames.{hint}'
                )


def most_different_frames(
    subjects: Sequence[Subject], pair: tuple[Output, Output], count: int | None
) -> list[str]:
    """Names of the first model's frames on which two outputs disagree most, the largest first."""
    models = {output.model for output in pair}
    found = {}
    for name in track_iter_progress(sorted(subjects[0].frames), file=sys.stderr):
        frame = read_frame(subjects, name, models)
        found[name] = disagreement(frame, pair, len(subjects[0].classes))
    return sorted(found, key=lambda name: -found[name])[:count]


def read_frame(subjects: Sequence[Subject], name: str, models: Iterable[int]) -> Frame:
    """Predict a frame by some of the models, which have to be evaluated in the same way."""
    path, truth, outputs = '', None, {}
    for index in models:
        sample = subjects[index].predict(name)
        own, maps = maps_of(sample, () if truth is None else truth.shape)
        path, truth = sample.img_path, own if truth is None else truth
        outputs.update({Output(index, output): label_map for output, label_map in maps.items()})
    assert truth is not None
    return Frame(path, truth, outputs)


def disagreement(frame: Frame, pair: tuple[Output, Output], num_classes: int) -> float:
    """Share of the labelled pixels on which two outputs differ, 0 to 1."""
    first, second = (frame.outputs[output] for output in pair)
    labelled = frame.truth < num_classes
    return float((first != second)[labelled].mean()) if labelled.any() else 0.0


def who_is_right(
    first: np.ndarray, second: np.ndarray, truth: np.ndarray, num_classes: int
) -> tuple[np.ndarray, list[float]]:
    """Map where both, only one or neither of two label maps ``(H, W)`` are right.

    Labels outside the classes are ignored and stay black.

    Returns:
        The map, ``(H, W, 3)``, RGB; and the shares of the labelled pixels in the order of
        ``COLORS``, 0 to 1.
    """
    labelled = truth < num_classes
    case = 2 * (first != truth) + (second != truth)  # in the order of COLORS
    image = np.array(COLORS, np.uint8)[case] * labelled[..., None]
    counts = np.bincount(case[labelled], minlength=len(COLORS))
    return image, (counts / max(1, labelled.sum())).tolist()


def title_of(output: Output, subjects: Sequence[Subject]) -> str:
    """How an output is called in figures and tables."""
    return output.name if len(subjects) == 1 else f'{output.model + 1}:{output.name}'


def cases_of(pair: tuple[Output, Output], subjects: Sequence[Subject]) -> list[str]:
    """Which of two outputs may be right, in the order of ``COLORS``."""
    one, other = (title_of(output, subjects) for output in pair)
    return ['both right', f'only {one} right', f'only {other} right', 'neither right']


def shrink(panel: np.ndarray, width: int) -> np.ndarray:
    """Bring a panel ``(H, W, 3)`` that is wider than ``width`` to it."""
    if panel.shape[1] <= width:
        return panel
    size = (width, max(1, round(panel.shape[0] * width / panel.shape[1])))
    return cv2.resize(panel, size, interpolation=cv2.INTER_AREA)


def draw(
    frame: Frame,
    subjects: Sequence[Subject],
    pair: tuple[Output, Output] | None,
    *,
    columns: int,
    panel_width: int,
) -> tuple[np.ndarray, list[float]]:
    """Draw a frame: ``(H, W, 3)``, RGB; and the shares of the map of ``pair``, if there is one."""
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
        panels[f'who is right: {one}, {other}'], shares = who_is_right(
            first, second, frame.truth, len(classes)
        )
        cases = zip(cases_of(pair, subjects), shares, strict=True)
        texts = [f'{case} {share:.1%}' for case, share in cases]
        keys.append(([*texts, 'not labelled'], [*COLORS, (0, 0, 0)]))
    whole = grid({t: shrink(panel, panel_width) for t, panel in panels.items()}, columns=columns)
    return np.concatenate([whole, *(legend(*key, whole.shape[1]) for key in keys)]), shares
