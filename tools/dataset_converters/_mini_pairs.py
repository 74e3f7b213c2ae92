"""Draws scenes of two images, in which each shows what the other does not.

Rooms have a depth map: boxes look like what stands behind them, pictures and mats are flat. Streets
at night have a thermal image: people are too dark for the camera, cones as cold as the road.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from _mini_scenes import PROPS, Look, Scene, Shapes, polygon

# Of a class: the height in units of the shorter side, its shapes in tenths of that around the
# middle of its foot (of its centre, if it hangs or lies), and its look, or None if it has none.
Thing = tuple[float, Shapes, Look | None]
ROOM_THINGS: dict[str, Thing] = {
    'picture': (0.3, [(-5, -4, 5, 4)], ('d81e2c', 'f7e01c', 'checks')),
    'floor mat': (0.4, [(-6, -2, 6, 2)], ('1f9d3a', 'e6f4d0', 'stripes')),
    'box': (0.4, [(-5, -9, 5, 0)], None),
    'chair': (
        0.45,
        [(-4, -10, -2, 0), (-4, -5, 4, -3), (2, -5, 4, 0)],
        ('1557e0', '0b2a70', 'plain'),
    ),
}
FLAT = ('picture', 'floor mat')  # as deep as what they hang or lie on
WALL, FLOOR = ('c9b8a0', 'b8a68c', 'bricks'), ('8c8f96', '74777f', 'checks')
NIGHT_THINGS: dict[str, Thing] = {
    'car': (0.35, PROPS['car'][1]['car'], ('7d2a2a', '4a1818', 'plain')),
    'person': (0.4, PROPS['person'][1]['person'], None),
    'color_cone': (0.3, [(-3, 0, 0, -10, 3, 0)], ('f07a13', 'f4f0ea', 'bands')),
}
WARMTH = {'car': 0.75, 'person': 0.95}  # of 0 to 1; all else is as warm as the ground


class Pair(Scene):
    """A scene whose things lie anywhere, so that none tells where another is."""

    def place(
        self, wanted: Sequence[str], things: dict[str, Thing], top: float
    ) -> Iterator[tuple[str, float, list[np.ndarray]]]:
        """Gives things, their feet below `top` in pixels, the highest first, and outlines there."""
        rng, (height, width) = self.rng, self.size
        feet = np.sort(rng.uniform(top, 0.97 * height, len(wanted)))
        for name, foot in zip(wanted, feet, strict=True):
            size, shapes, _ = things[name]
            if name == 'picture':
                foot = rng.uniform(0.15, 0.35) * height
            scale = 0.1 * size * rng.uniform(0.7, 1.1) * self.unit
            centre = (rng.uniform(0.1, 0.9) * width, foot)
            yield name, foot, [polygon(shape) * scale + centre for shape in shapes]


class Room(Pair):
    """A wall and a floor, with the distance of every pixel."""

    def draw(self, wanted: Sequence[str], labels: dict[str, int]) -> None:
        """Draws the wanted things, what is flat first, then the farthest."""
        rng, (height, width) = self.rng, self.size
        base, far = rng.uniform(0.4, 0.55) * height, rng.uniform(3, 5)
        horizon = base - rng.uniform(0.15, 0.25) * height
        rows = np.maximum(np.arange(height), base)[:, None] - horizon
        #: Metres.
        self.depth = np.repeat(far * (base - horizon) / rows, width, axis=1)
        self.paint([polygon((-1, -1, *self.extent))], labels['wall'], WALL, 0.12)
        self.paint([polygon((-1, base, *self.extent))], labels['floor'], FLOOR, 0.12)
        names = sorted(wanted, key=FLAT.__contains__, reverse=True)
        for name, foot, outlines in self.place(names, ROOM_THINGS, base + 0.12 * height):
            self.put(outlines, labels[name], ROOM_THINGS[name][2])
            if name not in FLAT:
                ground = self.depth[min(height - 1, int(foot)), 0]
                inside = self.mask(outlines) > 0
                self.depth[inside] = np.minimum(self.depth, 0.93 * ground)[inside]

    def measure(self) -> np.ndarray:
        """Returns the depth in millimetres, uint16, (H, W); 0 where the sensor saw nothing."""
        noisy = self.depth * self.rng.normal(1, 0.01, self.size)
        known = self.rng.random(self.size) > 0.01
        return np.round(1000 * noisy * known).astype(np.uint16)


class Night(Pair):
    """A road in the dark, with the warmth of every pixel."""

    def draw(self, wanted: Sequence[str], labels: dict[str, int]) -> None:
        """Draws the wanted things; all else is unlabelled."""
        rng, height = self.rng, self.size[0]
        horizon, ground = rng.uniform(0.3, 0.45) * height, rng.uniform(0.25, 0.35)
        #: From 0 to 1.
        self.warmth = np.full(self.size, ground)
        self.warmth[: int(horizon)] = rng.uniform(0.05, 0.15)
        nothing = labels['unlabeled']
        self.paint([polygon((-1, -1, *self.extent))], nothing, ('14161e', '20242e', 'clouds'), 0.4)
        road = polygon((-1, horizon, *self.extent))
        self.paint([road], nothing, ('34363c', '3e4046', 'blotches'), 0.1)
        for name, _, outlines in self.place(wanted, NIGHT_THINGS, horizon + 0.25 * height):
            self.put(outlines, labels[name], NIGHT_THINGS[name][2])
            self.warmth[self.mask(outlines) > 0] = WARMTH.get(name, ground)

    def photograph(self) -> np.ndarray:
        """Returns colours and warmth as bytes, (H, W, 4)."""
        blurred = cv2.GaussianBlur(self.warmth, (0, 0), 0.8)
        warmth = blurred + 0.02 * self.rng.standard_normal(self.size)
        thermal = np.clip(np.round(255 * warmth), 0, 255).astype(np.uint8)
        return np.dstack([super().photograph(), thermal])
