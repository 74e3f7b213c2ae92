"""Draws the scenes of the miniature datasets: objects on a cluttered ground, and streets.

A shape is a row of numbers, x to the right and y downwards: three are a disc's centre and radius,
four the left, top, right and bottom of a box, more the corners of a polygon.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
from _common import IGNORE

Shapes = Sequence[Sequence[float]]
Look = tuple[str, str, str]  # two colours, and the pattern that mixes them

# Of a VOC class: its look, and its silhouette in tenths of its radius.
VOC_LOOKS: dict[str, tuple[Look, Shapes]] = {
    'aeroplane': (('f0f4fa', '2f6fde', 'stripes'), [(-10, -2, 10, 2), (-3, -10, 2, 10)]),
    'bicycle': (('18b5a0', '0b3d3a', 'rings'), [(-5, 3, 5), (5, 3, 5), (-4, -6, 4, 3)]),
    'bird': (('f5d518', '8a6400', 'waves'), [(0, 2, 5), (-10, -7, 0, -2, 10, -7, 4, 4, -4, 4)]),
    'boat': (('1a2f9f', 'f4f4f4', 'checks'), [(-10, 2, 10, 2, 6, 8, -6, 8), (0, -9, 8, 2, -4, 2)]),
    'bottle': (('1f9d3a', '17752b', 'plain'), [(-4, -2, 4, 10), (-4, -2, -2, -10, 2, -10, 4, -2)]),
    'bus': (('f07a13', '3b2a1a', 'panes'), [(-10, -6, 10, 6)]),
    'car': (('d81e2c', 'a81420', 'plain'), [(-6, -6, 5, -6, 9, 4, -9, 4), (-5, 4, 3), (5, 4, 3)]),
    'cat': (('e650b4', '6d1552', 'stripes'), [(0, 2, 8), (-8, 0, -7, -10, 0, -5, 7, -10, 8, 0)]),
    'chair': (('7b4a21', 'd19a5b', 'bricks'), [(-7, -10, -2, 10), (-6, -1, 7, 4), (2, 0, 7, 10)]),
    'cow': (('f5f0ea', '20140f', 'blotches'), [(-8, -5, 7, 5), (-7, 5, 6, 9), (5, -8, 10, -1)]),
    'diningtable': (('a9d81c', 'ffffff', 'checks'), [(-10, -6, 10, 0), (-3, 0, 3, 9)]),
    'dog': (('e0a86c', '4a240a', 'dots'), [(-7, -3, 6, 8), (-10, -8, -7, -9, -4, 0), (6, -4, 4)]),
    'horse': (('6b2fb3', 'c9a5f2', 'waves'), [(-8, -2, 5, 10), (1, 0, 4, -10, 10, -7, 5, 1)]),
    'motorbike': (('17191c', 'd5dade', 'stripes'), [(-6, 3, 4), (6, 3, 4), (-9, -3, 6, 3)]),
    'person': (('f2a58c', '8f1437', 'panes'), [(0, -7, 3), (-5, -4, 5, 4), (-4, 3, 4, 10)]),
    'pottedplant': (('2a6b1e', 'ff3d5a', 'dots'), [(-4, 3, 4, 10), (-4, -1, 5), (4, -3, 6)]),
    'sheep': (('f6f3dc', 'a8a48a', 'rings'), [(-4, 0, 6), (3, -1, 6), (8, -3, 3), (-6, 3, 5, 9)]),
    'sofa': (('8c1c3a', 'e6b8c4', 'dots'), [(-10, -2, 10, 6), (-8, -7, 8, 0)]),
    'train': (('10a6e0', 'f2e205', 'bricks'), [(-10, -5, 5, -5, 10, 1, 10, 5, -10, 5)]),
    'tvmonitor': (('3a3f8f', '60ffd0', 'waves'), [(-10, -8, 10, 4), (-3, 3, 3, 7), (-6, 6, 6, 9)]),
}

# The parts of a street by Cityscapes' names.
STREET_LOOKS: dict[str, Look] = {
    'road': ('5d5a66', '6f6c78', 'blotches'),
    'sidewalk': ('c9a9b4', 'a98794', 'checks'),
    'building': ('b5704f', '2e3844', 'panes'),
    'wall': ('8f8a6a', '5c5840', 'bricks'),
    'fence': ('e6cf9a', '6d4f2c', 'stripes'),
    'pole': ('ffffff', '101010', 'bands'),
    'traffic light': ('14161a', 'ffb020', 'dots'),
    'traffic sign': ('1557e0', 'ffffff', 'rings'),
    'vegetation': ('2a6e2d', '5f9c3a', 'blotches'),
    'terrain': ('b9cf4a', 'd9dd7c', 'waves'),
    'sky': ('84c0f2', 'eaf4fc', 'clouds'),
    'person': ('d81b8c', 'ffd0b0', 'stripes'),
    'rider': ('f7e01c', '2a2a2a', 'checks'),
    'car': ('d62b24', '8f1512', 'plain'),
    'truck': ('f28c1e', 'fff3d6', 'bricks'),
    'bus': ('7b1fa2', 'f0e6f6', 'panes'),
    'train': ('0aa5a5', 'f5f5f5', 'checks'),
    'motorcycle': ('15181c', 'ff7fc0', 'rings'),
    'bicycle': ('101a60', '30e0ff', 'rings'),
}
# What CamVid calls a part, where it has another name.
CAMVID_NAMES = {'vegetation': 'tree', 'traffic sign': 'sign', 'traffic light': 'sign'}
CAMVID_NAMES |= {'person': 'pedestrian', 'rider': 'bicyclist', 'bicycle': 'bicyclist'}

CAR = [(-5, -10, 4, -10, 8, -5, -8, -5), (-9, -6, 9, -2), (-5, -2, 2), (5, -2, 2)]
WHEELS = [(-3.8, -3, 3), (3.8, -3, 3), (-3, -5, 3, -3)]
RIDER = [(0, -8.7, 1.4), (-2, -7.5, 2, -7.5, 2.4, -3, -2.4, -3)]
POLE = [(-0.65, -7, 0.65, 0)]
BARRIER = [(-18, 5, -18, -10, 8, -6, 8, -1)]  # nearer on the left
# What stands in a street: its height at the image's bottom edge, in units of the shorter side, and
# the shapes of each part in tenths of the height, around the middle of its foot.
PROPS: dict[str, tuple[float, dict[str, Shapes]]] = {
    'house': (1, {'building': [(-4, -10, 4, 0)]}),
    'tree': (1, {'vegetation': [(-0.6, -6, 0.6, 0), (-2, -5, 2.4), (2, -6, 2.6), (0, -8, 2.4)]}),
    'car': (0.42, {'car': CAR}),
    'truck': (0.54, {'truck': [(-7, -10, 3.5, -1), (3, -6.5, 7, -1)]}),
    'bus': (0.56, {'bus': [(-7.5, -10, 7.5, -0.5)]}),
    'train': (0.54, {'train': [(-10, -10, 8, -10, 11, -4, 11, 0, -10, 0)]}),
    'motorcyclist': (0.52, {'motorcycle': WHEELS, 'rider': RIDER}),
    'cyclist': (0.52, {'bicycle': WHEELS, 'rider': RIDER}),
    'bicycle': (0.36, {'bicycle': [(-5, -4, 4), (5, -4, 4), (-4, -9, 4, -5)]}),
    'person': (0.52, {'person': [(0, -8.6, 1.4), (-2.4, -7.4, 2.4, -3), (-2, -3, 2, 0)]}),
    'sign': (0.8, {'pole': POLE, 'traffic sign': [(0, -8.2, 1.8)]}),
    'light': (0.85, {'pole': POLE, 'traffic light': [(-1.6, -10, 1.6, -6)]}),
    'wall': (0.35, {'wall': BARRIER}),
    'fence': (0.35, {'fence': BARRIER}),
}
ON_ROAD = ('car', 'truck', 'bus', 'train', 'motorcyclist', 'cyclist')

# A pattern maps coordinates, in periods, and noise to the share of the second colour.
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    'plain': lambda u, v, noise: np.zeros_like(noise),
    'blotches': lambda u, v, noise: noise > 0.5,
    'clouds': lambda u, v, noise: noise**2,
    'stripes': lambda u, v, noise: u % 1 < 0.5,
    'bands': lambda u, v, noise: v % 1 < 0.5,
    'waves': lambda u, v, noise: (v + 0.3 * np.sin(np.pi * u)) % 1 < 0.45,
    'checks': lambda u, v, noise: (u % 1 < 0.5) ^ (v % 1 < 0.5),
    'dots': lambda u, v, noise: np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3,
    'rings': lambda u, v, noise: np.hypot(u, v) % 1 < 0.45,
    'panes': lambda u, v, noise: (u % 1 < 0.55) & (v % 1 < 0.55),
    'bricks': lambda u, v, noise: (v % 1 < 0.3) | ((u / 2 + v // 1 % 2 / 2) % 1 < 0.2),
}


def polygon(shape: Sequence[float]) -> np.ndarray:
    """Returns the corners of a shape, (points, 2)."""
    if len(shape) == 3:
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1) * shape[2] + shape[:2]
    if len(shape) == 4:
        left, top, right, bottom = shape
        shape = (left, top, right, top, right, bottom, left, bottom)
    return np.array(shape, float).reshape(-1, 2)


class Scene:
    """An image of a size (height, width) and its labels while they are painted."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.unit, self.extent = min(size), np.array(size[::-1])
        self.image = np.zeros((*size, 3), np.float32)
        self.label = np.zeros(size, np.uint8)

    def mask(self, outlines: Iterable[np.ndarray]) -> np.ndarray:
        """Returns the union of polygons in pixels as a map of 0 and 1, (H, W)."""
        mask = np.zeros(self.size, np.uint8)
        for outline in outlines:
            cv2.fillPoly(mask, [np.round(16 * outline).astype(np.int32)], 1, shift=4)
        return mask

    def paint(self, outlines: list[np.ndarray], label: int, look: Look, period: float) -> None:
        """Paints a look and a label into polygons; the period is in units of the shorter side."""
        mask, period = self.mask(outlines), period * self.unit
        left, top, width, height = cv2.boundingRect(mask)
        if not width:  # outside the image
            return
        window = np.s_[top : top + height, left : left + width]
        coarse = self.rng.random((round(height / period) + 3, round(width / period) + 3))
        noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        x, y = np.concatenate(outlines).mean(axis=0)
        v, u = (np.mgrid[window] - np.reshape([y, x], (2, 1, 1))) / period
        share = PATTERNS[look[2]](u, v, noise)[..., None]
        first, second = (np.array([*bytes.fromhex(name)]) / 255 for name in look[:2])
        colours = (first + share * (second - first)) * self.rng.uniform(0.9, 1.1, 3)
        inside = mask[window] > 0
        self.image[window][inside] = colours[inside]
        self.label[window][inside] = label

    def put(self, outlines: list[np.ndarray], label: int, look: Look | None) -> None:
        """Paints a label into polygons, and a look if there is one."""
        if look is not None:
            self.paint(outlines, label, look, 0.08)
        self.label[self.mask(outlines) > 0] = label

    def measure(self) -> np.ndarray | None:
        """Returns the second image of the scene, (H, W), if it has one."""
        return None

    def shade(self, outlines: Iterable[np.ndarray]) -> None:
        """Darkens polygons, with a soft edge; labels stay."""
        mask = self.mask(outlines).astype(np.float32)
        self.image *= 1 - 0.38 * cv2.GaussianBlur(mask, (0, 0), 0.02 * self.unit)[..., None]

    def photograph(self) -> np.ndarray:
        """Returns the image as RGB bytes (H, W, 3), under random light, blurred and noisy."""
        light, blur, noise = self.rng.uniform((0.75, 0.4, 0.01), (1.15, 0.9, 0.04))
        image = cv2.GaussianBlur(self.image * light * self.rng.uniform(0.94, 1.06, 3), (0, 0), blur)
        image += noise * self.rng.standard_normal(image.shape)
        return np.clip(np.round(255 * image), 0, 255).astype(np.uint8)


class Still(Scene):
    """Objects on a cluttered ground, as in Pascal VOC."""

    def draw(self, wanted: Sequence[str], labels: dict[str, int]) -> None:
        """Draws the wanted classes, and perhaps one more."""
        rng, unit = self.rng, self.unit
        self.paint([polygon((-1, -1, *self.extent))], 0, ('a09c94', '8a8880', 'blotches'), 0.15)
        for _ in range(rng.integers(3, 8)):  # dull shapes, which stay background
            tint = rng.integers(60, 160) + rng.integers(0, 45, 3)
            colours = [bytes((tint + shift).tolist()).hex() for shift in rng.integers(-30, 30, 2)]
            pattern = rng.choice(['plain', 'blotches', 'stripes', 'checks', 'bricks'])
            corners = rng.uniform(0, self.extent) + rng.uniform(-0.25, 0.25, (5, 2)) * unit
            hull = cv2.convexHull(corners.astype(np.float32))[:, 0]
            self.paint([hull], 0, (*colours, pattern), 0.08)
        for name in (*rng.choice(list(VOC_LOOKS), rng.integers(0, 2)), *wanted):
            look, shapes = VOC_LOOKS[name]
            radius, centre = rng.uniform(0.2, 0.36) * unit, rng.uniform(0.16, 0.84, 2) * self.extent
            turn = cv2.getRotationMatrix2D((0, 0), rng.uniform(-25, 25), 1)[:, :2]
            flip = np.diag(rng.uniform(0.85, 1.15, 2) * (rng.choice([-1, 1]), 1))
            outlines = [polygon(shape) @ flip @ turn * radius / 10 + centre for shape in shapes]
            self.shade([outline + 0.04 * unit for outline in outlines])
            self.paint(outlines, labels[name], look, 0.33 * radius / unit)
            line = np.ones(2 * [2 * max(1, round(unit / 120)) + 1])  # around it, as in VOC
            border = cv2.morphologyEx(self.mask(outlines), cv2.MORPH_GRADIENT, line)
            self.label[border > 0] = IGNORE


class Street(Scene):
    """A straight street seen along its axis, with depths from 0 (horizon) to 1 (bottom edge)."""

    def draw(self, wanted: Sequence[str], labels: dict[str, int]) -> None:
        """Draws the wanted props in a street; `labels` has those of its parts."""
        rng, self.labels, width = self.rng, labels, self.size[1]
        self.vanishing = rng.uniform((0.38, 0.36), (0.62, 0.48)) * self.extent
        # Where the outer and the inner edge of each sidewalk are at depth 1, from left to right.
        self.edges = width * rng.uniform((-0.8, -0.2, 0.9, 1.4), (-0.4, 0.1, 1.2, 1.8))
        self.draw_ground()
        for depth, side in itertools.product((0.08, 0.16, 0.28, 0.45), (-1, 1)):
            edge = self.edges[0 if side < 0 else 3] + side * 0.5 * width
            name = rng.choice(['house', 'house', 'tree'])
            self.draw_prop(name, self.point(edge, depth), 0.3 + depth)
        if rng.random() < 0.4:  # a crate, which belongs to no class
            foot = self.point(rng.choice(self.edges), rng.uniform(0.4, 0.8))
            crate = polygon((-1, -2, 1, 0)) * rng.uniform(0.05, 0.1) * self.unit + foot
            self.paint([crate], IGNORE, ('9a9a9a', '777777', 'panes'), 0.08)
        # Props well apart, the tall ones rather behind.
        props = sorted(wanted, key=lambda name: -PROPS[name][0] * rng.uniform(0.6, 1.4))
        shares = (rng.permutation(len(props)) + rng.uniform(0.1, 0.9, len(props))) / len(props)
        depths = np.sort(rng.uniform(0.42, 0.92, len(props)))
        for name, share, depth in zip(props, shares, depths, strict=True):
            if name in ON_ROAD:
                edge = np.interp(share, (-0.2, 1.2), self.edges[1:3])
            else:  # on the left sidewalk, then on the right one
                edge = np.interp(share, (-0.1, 0.499, 0.501, 1.1), self.edges)
            x, y = self.point(edge, depth)
            self.draw_prop(name, np.array([np.clip(x, 0.08 * width, 0.92 * width), y]), depth)

    def point(self, edge: float, depth: float) -> np.ndarray:
        """Returns the ground's pixel (x, y) at a depth, on the line with x = `edge` at depth 1."""
        return self.vanishing + depth * (np.array([edge, self.size[0]]) - self.vanishing)

    def draw_ground(self) -> None:
        """Draws sky, terrain (where the dataset knows it), sidewalks and road."""
        self.paint([polygon((-1, -1, *self.extent))], self.labels['sky'], STREET_LOOKS['sky'], 0.4)
        beyond = 'terrain' if 'terrain' in self.labels else 'sidewalk'
        wide = np.array([-9, 10]) * self.extent[0]
        edges = [(beyond, wide), ('sidewalk', self.edges[::3]), ('road', self.edges[1:3])]
        for name, (west, east) in edges:
            corners = [self.point(*at) for at in ((west, 0), (west, 2), (east, 2), (east, 0))]
            self.paint([np.array(corners)], self.labels[name], STREET_LOOKS[name], 0.08)

    def draw_prop(self, name: str, foot: np.ndarray, scale: float) -> None:
        """Draws a prop with its shadow."""
        height, parts = PROPS[name]
        size = 0.1 * height * scale * self.rng.uniform(0.9, 1.1) * self.unit
        flip = size if foot[0] < self.vanishing[0] else -size
        everything = [polygon(shape) for shapes in parts.values() for shape in shapes]
        self.shade(outline * (flip, 0.15 * size) + foot for outline in everything)
        period = 0.14 * height * scale + 0.02
        for part, shapes in parts.items():
            outlines = [polygon(shape) * (flip, size) + foot for shape in shapes]
            self.paint(outlines, self.labels[part], STREET_LOOKS[part], period)
