"""Draws the scenes of the miniature data sets: objects on a cluttered ground, and streets.

What a class looks like stands in the tables `VOC_LOOKS`, `STREET_LOOKS` and `PROPS`; the functions
below them only place, light and disturb. Lengths are given in units of the picture's shorter side,
so that any size shows the same kind of scene.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from _common import CAMVID_CLASSES, IGNORE

Polygon = np.ndarray  # (points, 2): x to the right, y downwards


class Look(NamedTuple):
    """Two colours and the pattern that mixes them."""

    colour: str
    second: str
    pattern: str


# --- Silhouettes ----------------------------------------------------------------------------------


def box(left: float, top: float, right: float, bottom: float) -> Polygon:
    """Returns an upright rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def disc(x: float, y: float, radius: float) -> Polygon:
    """Returns a circle as a polygon of 24 points."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def shape(*points: tuple[float, float]) -> Polygon:
    """Returns the polygon through the points."""
    return np.array(points)


# Of a VOC class: its look, and its silhouette in -1..1 around its centre.
VOC_LOOKS: dict[str, tuple[Look, list[Polygon]]] = {
    'aeroplane': (
        Look('#f0f4fa', '#2f6fde', 'stripes'),
        [box(-1, -0.22, 1, 0.22), box(-0.3, -1, 0.2, 1), box(-1, -0.55, -0.7, 0.55)],
    ),
    'bicycle': (
        Look('#18b5a0', '#0b3d3a', 'rings'),
        [
            disc(-0.5, 0.35, 0.5),
            disc(0.5, 0.35, 0.5),
            shape((-0.6, 0.3), (-0.3, -0.6), (0.4, -0.6), (0.6, 0.3)),
        ],
    ),
    'bird': (
        Look('#f5d518', '#8a6400', 'waves'),
        [
            disc(0, 0.15, 0.45),
            shape((-1, -0.7), (0, -0.2), (0, 0.4), (-0.4, 0.3)),
            shape((1, -0.7), (0, -0.2), (0, 0.4), (0.4, 0.3)),
        ],
    ),
    'boat': (
        Look('#1a2f9f', '#f4f4f4', 'checks'),
        [
            shape((-1, 0.2), (1, 0.2), (0.6, 0.8), (-0.6, 0.8)),
            shape((-0.35, 0.3), (-0.2, -1), (0.8, 0.3)),
        ],
    ),
    'bottle': (
        Look('#1f9d3a', '#17752b', 'plain'),
        [box(-0.45, -0.25, 0.45, 1), shape((-0.45, -0.2), (-0.2, -1), (0.2, -1), (0.45, -0.2))],
    ),
    'bus': (Look('#f07a13', '#3b2a1a', 'panes'), [box(-1, -0.6, 1, 0.6)]),
    'car': (
        Look('#d81e2c', '#a81420', 'plain'),
        [
            shape((-0.55, -0.55), (0.4, -0.55), (0.8, 0), (-0.8, 0)),
            box(-1, -0.05, 1, 0.4),
            disc(-0.55, 0.4, 0.28),
            disc(0.55, 0.4, 0.28),
        ],
    ),
    'cat': (
        Look('#e650b4', '#6d1552', 'stripes'),
        [
            disc(0, 0.15, 0.8),
            shape((-0.8, 0), (-0.7, -1), (0, -0.5)),
            shape((0.8, 0), (0.7, -1), (0, -0.5)),
        ],
    ),
    'chair': (
        Look('#7b4a21', '#d19a5b', 'bricks'),
        [box(-0.65, -1, -0.2, 1), box(-0.6, -0.1, 0.65, 0.35), box(0.2, 0, 0.65, 1)],
    ),
    'cow': (
        Look('#f5f0ea', '#20140f', 'blotches'),
        [
            box(-0.85, -0.45, 0.7, 0.35),
            box(-0.8, 0.2, -0.4, 0.9),
            box(0.3, 0.2, 0.7, 0.9),
            box(0.5, -0.8, 1, -0.1),
        ],
    ),
    'diningtable': (
        Look('#a9d81c', '#ffffff', 'checks'),
        [box(-1, -0.55, 1, 0), box(-0.3, -0.1, 0.3, 0.7), box(-0.65, 0.5, 0.65, 0.85)],
    ),
    'dog': (
        Look('#e0a86c', '#4a240a', 'dots'),
        [
            box(-0.7, -0.25, 0.6, 0.3),
            shape((-1, -0.8), (-0.7, -0.9), (-0.45, 0), (-0.75, 0)),
            box(-0.7, 0.2, -0.3, 0.8),
            box(0.2, 0.2, 0.6, 0.8),
            disc(0.65, -0.35, 0.4),
        ],
    ),
    'horse': (
        Look('#6b2fb3', '#c9a5f2', 'waves'),
        [
            box(-0.75, -0.25, 0.5, 0.3),
            box(-0.75, 0.2, -0.4, 1),
            box(0.15, 0.2, 0.5, 1),
            shape((0.1, 0), (0.4, -0.95), (0.95, -0.7), (0.85, -0.4), (0.5, 0.1)),
        ],
    ),
    'motorbike': (
        Look('#17191c', '#d5dade', 'stripes'),
        [
            disc(-0.6, 0.3, 0.42),
            disc(0.6, 0.3, 0.42),
            shape((-0.9, -0.3), (0.4, -0.6), (0.7, 0.3), (-0.5, 0.5)),
        ],
    ),
    'person': (
        Look('#f2a58c', '#8f1437', 'panes'),
        [disc(0, -0.68, 0.32), box(-0.5, -0.42, 0.5, 0.35), box(-0.42, 0.3, 0.42, 1)],
    ),
    'pottedplant': (
        Look('#2a6b1e', '#ff3d5a', 'dots'),
        [
            shape((-0.5, 0.3), (0.5, 0.3), (0.35, 1), (-0.35, 1)),
            disc(-0.4, -0.15, 0.5),
            disc(0.4, -0.15, 0.5),
            disc(0, -0.5, 0.5),
        ],
    ),
    'sheep': (
        Look('#f6f3dc', '#a8a48a', 'rings'),
        [
            disc(-0.4, 0, 0.5),
            disc(0.3, 0, 0.5),
            disc(-0.05, -0.25, 0.5),
            disc(0.8, -0.3, 0.3),
            box(-0.6, 0.3, -0.25, 0.85),
            box(0.15, 0.3, 0.5, 0.85),
        ],
    ),
    'sofa': (
        Look('#8c1c3a', '#e6b8c4', 'dots'),
        [box(-1, -0.15, 1, 0.6), box(-0.8, -0.65, 0.8, 0)],
    ),
    'train': (
        Look('#10a6e0', '#f2e205', 'bricks'),
        [shape((-1, -0.5), (0.5, -0.5), (1, 0.1), (1, 0.5), (-1, 0.5))],
    ),
    'tvmonitor': (
        Look('#3a3f8f', '#60ffd0', 'waves'),
        [box(-0.95, -0.75, 0.95, 0.4), box(-0.25, 0.3, 0.25, 0.7), box(-0.6, 0.6, 0.6, 0.9)],
    ),
}
VOC_CLASSES = ('background', *VOC_LOOKS)

# The parts of a street by Cityscapes' names.
STREET_LOOKS: dict[str, Look] = {
    'road': Look('#5d5a66', '#6f6c78', 'blotches'),
    'sidewalk': Look('#c9a9b4', '#a98794', 'checks'),
    'building': Look('#b5704f', '#2e3844', 'panes'),
    'wall': Look('#8f8a6a', '#5c5840', 'bricks'),
    'fence': Look('#e6cf9a', '#6d4f2c', 'stripes'),
    'pole': Look('#ffffff', '#101010', 'bands'),
    'traffic light': Look('#14161a', '#ffb020', 'dots'),
    'traffic sign': Look('#1557e0', '#ffffff', 'rings'),
    'vegetation': Look('#2a6e2d', '#5f9c3a', 'blotches'),
    'terrain': Look('#b9cf4a', '#d9dd7c', 'waves'),
    'sky': Look('#84c0f2', '#eaf4fc', 'clouds'),
    'person': Look('#d81b8c', '#ffd0b0', 'stripes'),
    'rider': Look('#f7e01c', '#2a2a2a', 'checks'),
    'car': Look('#d62b24', '#8f1512', 'plain'),
    'truck': Look('#f28c1e', '#fff3d6', 'bricks'),
    'bus': Look('#7b1fa2', '#f0e6f6', 'panes'),
    'train': Look('#0aa5a5', '#f5f5f5', 'checks'),
    'motorcycle': Look('#15181c', '#ff7fc0', 'rings'),
    'bicycle': Look('#101a60', '#30e0ff', 'rings'),
}
CITYSCAPES_CLASSES = tuple(STREET_LOOKS)
# CamVid's name of a part, where it is another one.
CAMVID_NAMES = {
    'vegetation': 'tree',
    'traffic sign': 'sign',
    'traffic light': 'sign',
    'person': 'pedestrian',
    'rider': 'bicyclist',
    'bicycle': 'bicyclist',
}


class Prop(NamedTuple):
    """Something that stands in a street.

    Its parts are painted in order. They are given in heights of the prop, around the middle of its
    foot.
    """

    place: str  # 'road' or 'sidewalk'
    height: float  # at the bottom edge of the picture, in units of the picture's shorter side
    parts: list[tuple[str, list[Polygon]]]


_WHEELS = [disc(-0.36, -0.3, 0.3), disc(0.36, -0.3, 0.3)]
_RIDER = [disc(0, -0.87, 0.13), shape((-0.22, -0.75), (0.2, -0.75), (0.24, -0.3), (-0.2, -0.3))]
_POLE = ('pole', [box(-0.065, -0.75, 0.065, 0)])
PROPS: dict[str, Prop] = {
    'car': Prop(
        'road',
        0.42,
        [
            (
                'car',
                [
                    shape((-0.5, -1), (0.4, -1), (0.75, -0.5), (-0.75, -0.5)),
                    box(-0.95, -0.6, 0.95, -0.15),
                    disc(-0.55, -0.2, 0.2),
                    disc(0.55, -0.2, 0.2),
                ],
            )
        ],
    ),
    'truck': Prop(
        'road', 0.54, [('truck', [box(-0.7, -1, 0.35, -0.08), box(0.3, -0.65, 0.7, -0.08)])]
    ),
    'bus': Prop('road', 0.56, [('bus', [box(-0.75, -1, 0.75, -0.06)])]),
    'train': Prop(
        'road',
        0.54,
        [('train', [shape((-1, -1), (0.8, -1), (1.1, -0.4), (1.1, -0.04), (-1, -0.04))])],
    ),
    'motorcyclist': Prop(
        'road',
        0.52,
        [
            (
                'motorcycle',
                [*_WHEELS, shape((-0.4, -0.5), (0.45, -0.65), (0.4, -0.2), (-0.4, -0.2))],
            ),
            ('rider', _RIDER),
        ],
    ),
    'cyclist': Prop(
        'road', 0.52, [('bicycle', [*_WHEELS, box(-0.3, -0.5, 0.3, -0.3)]), ('rider', _RIDER)]
    ),
    'bicycle': Prop(
        'sidewalk',
        0.36,
        [
            (
                'bicycle',
                [disc(-0.5, -0.42, 0.42), disc(0.5, -0.42, 0.42), box(-0.4, -0.9, 0.4, -0.5)],
            )
        ],
    ),
    'person': Prop(
        'sidewalk',
        0.52,
        [
            (
                'person',
                [disc(0, -0.86, 0.14), box(-0.24, -0.74, 0.24, -0.3), box(-0.19, -0.35, 0.19, 0)],
            )
        ],
    ),
    'sign': Prop('sidewalk', 0.8, [_POLE, ('traffic sign', [disc(0, -0.82, 0.18)])]),
    'light': Prop('sidewalk', 0.85, [_POLE, ('traffic light', [box(-0.16, -1, 0.16, -0.6)])]),
}
BARRIERS = ('wall', 'fence')  # stand along the outer edge of a sidewalk


# --- Patterns -------------------------------------------------------------------------------------


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cell: float) -> np.ndarray:
    """Returns noise in 0..1 of shape (H, W) whose blotches are `cell` pixels wide."""
    height, width = size
    coarse = rng.random((round(height / cell) + 3, round(width / cell) + 3), dtype=np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


# A pattern maps coordinates, in periods, to the share of the second colour.
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    'plain': lambda u, v: np.zeros_like(u),
    'stripes': lambda u, v: u % 1 < 0.5,
    'bands': lambda u, v: v % 1 < 0.5,
    'waves': lambda u, v: (v + 0.3 * np.sin(np.pi * u)) % 1 < 0.45,
    'checks': lambda u, v: (u % 1 < 0.5) ^ (v % 1 < 0.5),
    'dots': lambda u, v: np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3,
    'rings': lambda u, v: np.hypot(u, v) % 1 < 0.45,
    'panes': lambda u, v: (u % 1 < 0.55) & (v % 1 < 0.55),
    'bricks': lambda u, v: (v % 1 < 0.3) | ((0.5 * u + 0.5 * (v // 1 % 2)) % 1 < 0.2),
}


def jittered(rng: np.random.Generator, colours: Sequence[str], strength: float) -> np.ndarray:
    """Shifts hex colours together in HSV and returns them as RGB in 0..1, shape (N, 3)."""
    hue, saturation, value = rng.uniform(-1, 1, 3) * strength
    result = []
    for colour in colours:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        h, s, v = colorsys.rgb_to_hsv(red, green, blue)
        s = min(1, s * (1 + 2 * saturation))
        result.append(colorsys.hsv_to_rgb((h + 0.25 * hue) % 1, s, min(1, v * (1 + 2 * value))))
    return np.array(result, np.float32)


# --- The picture ----------------------------------------------------------------------------------


class Scene:
    """A picture and its label map while they are painted.

    Args:
        size: Height and width in pixels.
        rng: Source of all chance in this scene.
        label: Label of what nothing is painted over.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator, label: int) -> None:
        self.size = size
        self.unit = min(size)
        self.rng = rng
        self.image = np.zeros((*size, 3), np.float32)
        self.label = np.full(size, label, np.uint8)
        self.rows, self.columns = np.mgrid[: size[0], : size[1]].astype(np.float32)

    def mask(self, polygons: Sequence[Polygon]) -> np.ndarray:
        """Returns the union of polygons in pixel coordinates as a boolean map."""
        mask = np.zeros(self.size, np.uint8)
        for polygon in polygons:
            cv2.fillPoly(mask, [np.round(polygon * 16).astype(np.int32)], 1, shift=4)
        return mask.astype(bool)

    def paint(
        self,
        mask: np.ndarray,
        label: int,
        look: Look,
        period: float,
        centre: Sequence[float] | np.ndarray = (0, 0),
        angle: float = 0,
        jitter: float = 0.12,
    ) -> None:
        """Paints a look, unevenly lit, and a label where the mask is set.

        Args:
            mask: Boolean map of shape (H, W).
            label: Label of the painted pixels.
            look: Colours and pattern.
            period: Length of the pattern's period, in pixels.
            centre: Origin of the pattern, (x, y) in pixels.
            angle: Rotation of the pattern, in radians.
            jitter: Strength of the colours' random shift.
        """
        if not mask.any():  # outside the picture
            return
        first, second = jittered(self.rng, (look.colour, look.second), jitter)
        slope = self.rng.uniform(-5, 5, 2) / self.unit
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        window = (slice(top, top + height), slice(left, left + width))
        x, y = self.columns[window] - centre[0], self.rows[window] - centre[1]
        if look.pattern == 'clouds':
            mix = smooth_noise(self.rng, (height, width), 4 * period) ** 2
        elif look.pattern == 'blotches':
            mix = smooth_noise(self.rng, (height, width), 0.8 * period) > 0.5
        else:
            u = (np.cos(angle) * x + np.sin(angle) * y) / period
            v = (np.cos(angle) * y - np.sin(angle) * x) / period
            mix = PATTERNS[look.pattern](u, v)
        light = 1 + 0.12 * np.tanh(slope[0] * x + slope[1] * y)
        texture = (first + mix[..., None] * (second - first)) * light[..., None]
        inside = mask[window]
        self.image[window][inside] = texture[inside]
        self.label[mask] = label

    def shade(self, mask: np.ndarray, factor: float) -> None:
        """Darkens the picture where the mask is set, with a soft edge; labels stay."""
        soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.02 * self.unit)
        self.image *= (1 - (1 - factor) * soft)[..., None]

    def photograph(self) -> np.ndarray:
        """Returns the picture as RGB bytes (H, W, 3), under random light, blurred and noisy."""
        rng = self.rng
        cast = rng.uniform(0.75, 1.15) * rng.uniform(0.94, 1.06, 3)
        slope = rng.uniform(-0.2, 0.2, 2)
        light = (
            1
            + slope[0] * (self.columns / self.size[1] - 0.5)
            + slope[1] * (self.rows / self.size[0] - 0.5)
        )
        image = self.image * light[..., None] * cast.astype(np.float32)
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.9))
        image += rng.uniform(0.01, 0.04) * rng.standard_normal(image.shape, dtype=np.float32)
        return np.clip(np.round(255 * image), 0, 255).astype(np.uint8)


# --- Objects on a cluttered ground (Pascal VOC) ---------------------------------------------------


def draw_clutter(scene: Scene, count: int) -> None:
    """Covers the ground with pale, dull shapes; they stay background."""
    rng = scene.rng
    for _ in range(count):
        hue, value = rng.random(), rng.uniform(0.25, 0.8)
        colours = [colorsys.hsv_to_rgb(hue, 0.18, value + d) for d in (0, rng.uniform(-0.12, 0.12))]
        first, second = ('#' + bytes(round(255 * c) for c in rgb).hex() for rgb in colours)
        look = Look(first, second, rng.choice(['plain', 'blotches', 'stripes', 'checks']))
        centre = rng.uniform(0, 1, 2) * (scene.size[1], scene.size[0])
        corners = centre + rng.uniform(-1, 1, (5, 2)) * scene.unit * rng.uniform(0.1, 0.3)
        hull = cv2.convexHull(corners.astype(np.float32))[:, 0]
        period = rng.uniform(0.05, 0.12) * scene.unit
        scene.paint(scene.mask([hull]), 0, look, period, angle=rng.uniform(0, np.pi))


def draw_object(scene: Scene, name: str, label: int) -> None:
    """Draws an object with its cast shadow and, as in VOC, an ignored line around it."""
    rng = scene.rng
    look, silhouette = VOC_LOOKS[name]
    radius = rng.uniform(0.2, 0.36) * scene.unit
    centre = rng.uniform(0.16, 0.84, 2) * (scene.size[1], scene.size[0])
    angle = rng.uniform(-0.45, 0.45)
    stretch = rng.uniform(0.85, 1.15, 2) * (rng.choice([-1, 1]), 1)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outline = [centre + radius * (polygon * stretch) @ rotation for polygon in silhouette]
    shadow = rng.uniform(0.02, 0.06, 2) * scene.unit
    scene.shade(scene.mask([polygon + shadow for polygon in outline]), 0.65)
    mask = scene.mask(outline)
    scene.paint(mask, label, look, rng.uniform(0.28, 0.38) * radius, centre, angle)
    width = 2 * max(1, round(scene.unit / 120)) + 1
    border = cv2.morphologyEx(
        mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((width, width), np.uint8)
    )
    scene.label[border > 0] = IGNORE


def draw_voc(size: tuple[int, int], rng: np.random.Generator, wanted: Sequence[str]) -> Scene:
    """Draws the wanted classes, and perhaps one more, on a cluttered ground."""
    scene = Scene(size, rng, label=0)
    pattern = rng.choice(['blotches', 'plain', 'checks', 'bricks'])
    scene.paint(
        np.ones(size, bool),
        0,
        Look('#a09c94', '#8a8880', pattern),
        rng.uniform(0.06, 0.2) * scene.unit,
        angle=rng.uniform(0, np.pi),
        jitter=0.2,
    )
    draw_clutter(scene, int(rng.integers(3, 8)))
    extra = rng.choice(list(VOC_LOOKS), rng.integers(0, 2)).tolist()
    for name in [*extra, *wanted]:
        draw_object(scene, name, VOC_CLASSES.index(name))
    return scene


# --- Streets (Cityscapes, CamVid) -----------------------------------------------------------------


class Street:
    """A straight street seen along its axis, with depths from 0 (horizon) to 1 (bottom edge).

    Args:
        scene: What to draw it on.
        labels: Label of each part.
    """

    def __init__(self, scene: Scene, labels: dict[str, int]) -> None:
        rng = scene.rng
        self.scene = scene
        self.labels = labels
        self.height, self.width = scene.size
        self.horizon = rng.uniform(0.36, 0.48) * self.height
        self.vanishing_point = rng.uniform(0.38, 0.62) * self.width
        road = (rng.uniform(-0.2, 0.1), rng.uniform(0.9, 1.2))
        # At depth 1, from left to right: outer and inner edge of each sidewalk.
        left, right = rng.uniform(0.45, 0.7, 2)
        self.edges = self.width * np.array([road[0] - left, *road, road[1] + right])

    def point(self, edge: float, depth: float) -> tuple[float, float]:
        """Returns the ground's pixel (x, y) at a depth, on the line with x = `edge` at depth 1."""
        x = self.vanishing_point + depth * (edge - self.vanishing_point)
        return x, self.horizon + depth * (self.height - self.horizon)

    def paint(
        self, part: str, polygons: Sequence[Polygon], period: float, jitter: float = 0.12
    ) -> None:
        """Paints a part with its look; its period is in units of the picture's shorter side."""
        mask = self.scene.mask(polygons)
        centre = np.concatenate(polygons).mean(axis=0)
        period *= self.scene.unit
        look = STREET_LOOKS[part]
        self.scene.paint(mask, self.labels[part], look, period, centre, jitter=jitter)

    def draw_ground(self) -> None:
        """Draws sky, terrain (where the data set knows it), sidewalks and road."""
        outer_left, left, right, outer_right = self.edges
        self.paint('sky', [box(-1, -1, self.width, self.height)], 0.1)
        beyond = 'terrain' if 'terrain' in self.labels else 'sidewalk'
        for part, west, east in (
            (beyond, -9 * self.width, 10 * self.width),
            ('sidewalk', outer_left, outer_right),
            ('road', left, right),
        ):
            corners = [self.point(west, depth) for depth in (0, 2)]
            corners += [self.point(east, depth) for depth in (2, 0)]
            self.paint(part, [shape(*corners)], 0.09, jitter=0.06)

    def draw_side(self, side: int) -> None:
        """Draws houses and trees beyond the left (0) or right (3) outer edge, far ones first."""
        rng = self.scene.rng
        outward = -1 if side == 0 else 1
        for depth in (0.08, 0.16, 0.28, 0.45):
            x, y = self.point(self.edges[side] + outward * 0.35 * self.width, depth)
            reach = outward * rng.uniform(0.28, 0.5) * self.width * (0.5 + depth)
            if rng.random() < 0.6:
                top = y - rng.uniform(0.9, 1.5) * (0.25 + depth) * self.height
                self.paint('building', [box(x, top, x + reach, y)], 0.09)
            else:
                self.draw_tree(x + 0.4 * reach, y, rng.uniform(0.5, 0.75) * (0.45 + depth))

    def draw_tree(self, x: float, y: float, height: float) -> None:
        """Draws a tree with its foot at the pixel (x, y), `height` in units of the picture's."""
        rng = self.scene.rng
        height *= self.height
        crown = [
            disc(x + dx * height, y - dy * height, rng.uniform(0.2, 0.3) * height)
            for dx, dy in rng.uniform((-0.22, 0.45), (0.22, 0.8), (5, 2))
        ]
        trunk = box(x - 0.06 * height, y - 0.6 * height, x + 0.06 * height, y)
        self.paint('vegetation', [trunk, *crown], 0.07)

    def draw_barriers(self, parts: Sequence[str]) -> None:
        """Draws a wall and a fence, or one of them, along the sidewalks' outer edges."""
        rng = self.scene.rng
        for part, edge in zip(parts, rng.permutation(self.edges[[0, 3]]), strict=False):
            height = rng.uniform(0.5, 0.65) * self.height
            near, far = rng.uniform(0.6, 0.9), rng.uniform(0.1, 0.2)
            (x0, y0), (x1, y1) = self.point(edge, near), self.point(edge, far)
            top = [(x0, y0 - near * height), (x1, y1 - far * height)]
            self.paint(part, [shape((x0, y0), *top, (x1, y1))], 0.07)

    def draw_props(self, props: Sequence[Prop]) -> None:
        """Draws props side by side as far as there is room, mostly the tall ones farther away."""
        rng = self.scene.rng
        order = sorted(props, key=lambda prop: -prop.height * rng.uniform(0.6, 1.4))
        depths = np.sort(rng.uniform(0.42, 0.92, len(props)))
        places = [prop.place for prop in props]
        shares = {place: self.shares(places.count(place)) for place in ('road', 'sidewalk')}
        for prop, depth in zip(order, depths, strict=True):
            share = shares[prop.place].pop()
            left, right = self.edges[1:3]
            if prop.place == 'sidewalk':  # the left one up to one half, then the right one
                left, right = self.edges[2:] if share > 0.5 else self.edges[:2]
                share = 2 * share % 1
            self.draw_prop(prop, left + (0.15 + 0.7 * share) * (right - left), depth)

    def shares(self, count: int) -> list[float]:
        """Returns `count` positions in 0..1, well apart and in random order."""
        rng = self.scene.rng
        return ((rng.permutation(count) + rng.uniform(0.1, 0.9, count)) / max(1, count)).tolist()

    def draw_prop(self, prop: Prop, edge: float, depth: float) -> None:
        """Draws a prop with its shadow, on the line that has x = `edge` at depth 1."""
        rng = self.scene.rng
        x, y = self.point(edge, depth)
        x = float(np.clip(x, 0.08 * self.width, 0.92 * self.width))
        height = prop.height * self.scene.unit * depth * rng.uniform(0.9, 1.1)
        size = height * np.array([rng.choice([-1, 1]), 1])
        outline = [polygon for _, polygons in prop.parts for polygon in polygons]
        shadow = [(x, y) + polygon * size * (1, 0.15) for polygon in outline]
        self.scene.shade(self.scene.mask(shadow), 0.6)
        for part, polygons in prop.parts:
            placed = [(x, y) + polygon * size for polygon in polygons]
            self.paint(part, placed, 0.14 * prop.height * depth + 0.02)

    def draw_clutter(self) -> None:
        """Draws a grey crate that belongs to no class."""
        rng = self.scene.rng
        x, y = self.point(self.edges[rng.choice([0, 1, 2, 3])], rng.uniform(0.4, 0.8))
        side = rng.uniform(0.05, 0.1) * self.height
        crate = self.scene.mask([box(x - side, y - 2 * side, x + side, y)])
        self.scene.paint(crate, IGNORE, Look('#9a9a9a', '#777777', 'panes'), side)


def draw_street(
    size: tuple[int, int], rng: np.random.Generator, wanted: Sequence[str], labels: dict[str, int]
) -> Scene:
    """Draws a street with the wanted props and barriers; `labels` gives the label of each part."""
    scene = Scene(size, rng, label=IGNORE)
    street = Street(scene, labels)
    street.draw_ground()
    for side in (0, 3):
        street.draw_side(side)
    street.draw_barriers([part for part in BARRIERS if part in wanted])
    if rng.random() < 0.4:
        street.draw_clutter()
    street.draw_props([PROPS[name] for name in wanted if name not in BARRIERS])
    return scene


# --- One scene of a data set ----------------------------------------------------------------------


def camvid_labels() -> dict[str, int]:
    """Returns CamVid's label of each part of a street that CamVid knows."""
    names = {part: CAMVID_NAMES.get(part, part) for part in STREET_LOOKS}
    return {
        part: CAMVID_CLASSES.index(name) for part, name in names.items() if name in CAMVID_CLASSES
    }


LABELS: dict[str, dict[str, int]] = {
    'voc': {name: label for label, name in enumerate(VOC_CLASSES)},
    'cityscapes': {name: label for label, name in enumerate(CITYSCAPES_CLASSES)},
    'camvid': camvid_labels(),
}
CLASSES: dict[str, tuple[str, ...]] = {
    'voc': VOC_CLASSES,
    'cityscapes': CITYSCAPES_CLASSES,
    'camvid': CAMVID_CLASSES,
}
LAYOUTS = tuple(CLASSES)
SPLITS = ('train', 'val', 'test')
# What a scene may be asked to show, and how many of these it gets. They are dealt like cards, so
# that few scenes show all.
DECKS: dict[str, tuple[tuple[str, ...], int]] = {
    'voc': (tuple(VOC_LOOKS), 3),
    'cityscapes': ((*BARRIERS, *PROPS), 4),
    'camvid': (('fence', 'car', 'cyclist', 'person', 'person', 'sign', 'light'), 4),
}
STREET_STUFF = ('sky', 'building', 'vegetation', 'road', 'sidewalk', 'terrain')
MIN_SHARE = 0.004  # of a picture, that everything a scene is asked for has to cover
MAX_ATTEMPTS = 50


class DoesNotFitError(ValueError):
    """A picture is too small for what a scene has to show."""


def parts_of(name: str) -> list[str]:
    """Returns the parts that a card of a deck brings into the scene."""
    return [part for part, _ in PROPS[name].parts] if name in PROPS else [name]


def deal(layout: str, seed: int, split: int, number: int) -> list[str]:
    """Returns what a scene has to show; the deck is shuffled anew whenever it is used up."""
    deck, hand = DECKS[layout]
    cards = []
    for position in range(number * hand, (number + 1) * hand):
        rng = random_source(seed, layout, split, 0, position // len(deck))
        cards.append(deck[rng.permutation(len(deck))[position % len(deck)]])
    return cards


def random_source(seed: int, layout: str, *key: int) -> np.random.Generator:
    """Returns the generator of a key; each scene has its own, however many there are."""
    return np.random.default_rng(
        np.random.SeedSequence(seed, spawn_key=(LAYOUTS.index(layout), *key))
    )


def draw_scene(
    layout: str, size: tuple[int, int], seed: int, split: str, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene.

    Args:
        layout: 'voc', 'cityscapes' or 'camvid'.
        size: Height and width in pixels.
        seed: Seed of the whole data set.
        split: 'train', 'val' or 'test'.
        number: Number of the scene in its split.

    Returns:
        RGB image of shape (H, W, 3) and label map of shape (H, W), both uint8.

    Raises:
        DoesNotFitError: If what the scene has to show does not fit into the picture.
    """
    labels = LABELS[layout]
    split_number = SPLITS.index(split)
    wanted = deal(layout, seed, split_number, number)
    stuff = () if layout == 'voc' else STREET_STUFF
    parts = [*stuff, *(part for name in wanted for part in parts_of(name))]
    required = sorted({labels[part] for part in parts if part in labels})
    for attempt in range(MAX_ATTEMPTS):
        rng = random_source(seed, layout, split_number, 1, number, attempt)
        if layout == 'voc':
            scene = draw_voc(size, rng, wanted)
        else:
            scene = draw_street(size, rng, wanted, labels)
        counts = np.bincount(scene.label.ravel(), minlength=256)
        if (counts[required] >= MIN_SHARE * scene.label.size).all():
            return scene.photograph(), scene.label
    raise DoesNotFitError(f'{", ".join(wanted)} do not fit into {size[0]}x{size[1]} pixels')
