"""Deals the scenes of the miniature datasets: what each layout has to show, and who draws it."""

from __future__ import annotations

import numpy as np
from _common import CAMVID_CLASSES, MFNET_CLASSES, NYUV2_CLASSES, VOC_CLASSES
from _mini_pairs import NIGHT_THINGS, ROOM_THINGS, Night, Room
from _mini_scenes import CAMVID_NAMES, PROPS, STREET_LOOKS, VOC_LOOKS, Still, Street

from mmseg_coop_cli import CoopError

# By the values of the label files.
CLASSES = {
    'voc': VOC_CLASSES,
    'cityscapes': tuple(STREET_LOOKS),
    'camvid': CAMVID_CLASSES,
    'rgbd': ('unlabelled', *NYUV2_CLASSES),
    'rgbt': MFNET_CLASSES,
}
LABELS = {layout: {name: i for i, name in enumerate(names)} for layout, names in CLASSES.items()}
LABELS['camvid'] |= {part: LABELS['camvid'][name] for part, name in CAMVID_NAMES.items()}
LAYOUTS = tuple(CLASSES)
SPLITS = ('train', 'val', 'test')
# What a scene may be asked to show, and how many of these it gets. They are dealt like cards, and
# shuffled anew whenever they are used up, so that few scenes show all.
DECKS: dict[str, tuple[tuple[str, ...], int]] = {
    'voc': (tuple(VOC_LOOKS), 3),
    'cityscapes': (tuple(PROPS)[2:], 4),
    'camvid': (('fence', 'car', 'cyclist', 'person', 'person', 'sign', 'light'), 4),
    'rgbd': ((*ROOM_THINGS, 'box'), 3),
    'rgbt': ((*NIGHT_THINGS, 'person'), 3),
}
KINDS: dict[str, type[Still | Street | Room | Night]] = {
    'voc': Still,
    'cityscapes': Street,
    'camvid': Street,
    'rgbd': Room,
    'rgbt': Night,
}
STREET = ('sky', 'building', 'vegetation', 'road', 'sidewalk', 'terrain')
# What every scene shows beside.
STUFF = {
    'voc': ('background',),
    'cityscapes': STREET,
    'camvid': STREET,
    'rgbd': ('wall', 'floor'),
    'rgbt': ('unlabeled',),
}
# What scenes can show of the classes.
SHOWN = {layout: set(names) for layout, names in CLASSES.items()}
SHOWN['rgbd'] = {*STUFF['rgbd'], *ROOM_THINGS}
SHOWN['rgbt'] = {*STUFF['rgbt'], *NIGHT_THINGS}
MIN_SHARE = 0.004  # of an image, that everything a scene is asked for has to cover


def draw_scene(
    layout: str, size: tuple[int, int], seed: int, split: str, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Draws a scene of a layout; the same seed, split and number give the same scene.

    Returns:
        Image of shape (H, W, 3), RGB, or (H, W, 4) with a thermal one behind, and label map of
        shape (H, W), both uint8; and the depth of shape (H, W), uint16, if the layout has it.

    Raises:
        CoopError: If what the scene has to show does not fit into the size (H, W).
    """
    labels, key = LABELS[layout], (seed, LAYOUTS.index(layout), SPLITS.index(split))
    deck, hand = DECKS[layout]
    first, rounds = number * hand, range((number + 1) * hand // len(deck) + 1)
    shuffled = [np.random.default_rng([*key, 0, i]).permutation(deck) for i in rounds]
    wanted = np.concatenate(shuffled)[first : first + hand].tolist()
    parts = wanted
    if KINDS[layout] is Street:
        parts = [part for name in wanted for part in PROPS[name][1]]
    required = [labels[part] for part in {*STUFF[layout], *parts} & {*labels}]
    for attempt in range(50):
        scene = KINDS[layout](size, np.random.default_rng([*key, 1, number, attempt]))
        scene.draw(wanted, labels)
        counts = np.bincount(scene.label.ravel(), minlength=256)
        if (counts[required] >= MIN_SHARE * scene.label.size).all():
            return scene.photograph(), scene.label, scene.measure()
    raise CoopError(
        f'{", ".join(wanted)} do not fit into {size[0]}x{size[1]} pixels; give a larger or less '
        'elongated --size'
    )
