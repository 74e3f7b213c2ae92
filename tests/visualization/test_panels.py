from __future__ import annotations

import numpy as np
import pytest

from mmseg_coop.visualization.panels import grid, legend

BAR, GAP = 22, 4


def flat(value, size=(240, 100)):
    return np.full((*size, 3), value, np.uint8)


def panel(canvas, row, column, size=(240, 100)):
    height, width = size
    top, left = row * (BAR + height + GAP) + BAR, column * (width + GAP)
    return canvas[top : top + height, left : left + width]


@pytest.mark.parametrize(
    ('columns', 'places'),
    [
        (None, [(0, 0), (0, 1), (0, 2)]),
        (2, [(0, 0), (0, 1), (1, 0)]),
        (1, [(0, 0), (1, 0), (2, 0)]),
        (9, [(0, 0), (0, 1), (0, 2)]),
    ],
)
def test_panels_fill_rows(columns, places):
    canvas = grid({str(value): flat(value) for value in (10, 20, 30)}, columns=columns)
    rows, width = 1 + max(row for row, _ in places), 1 + max(column for _, column in places)
    assert canvas.shape == (rows * (240 + BAR + GAP) - GAP, width * (100 + GAP) - GAP, 3)
    for place, value in zip(places, (10, 20, 30), strict=True):
        assert (panel(canvas, *place) == value).all()
    if columns == 2:
        assert (panel(canvas, 1, 1) == 255).all()  # nothing is left for the last place


def test_small_panels_are_enlarged_without_mixing_colours():
    checks = np.indices((60, 25)).sum(0) % 2 * 255
    canvas = grid({'checks': np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)})
    assert (panel(canvas, 0, 0)[::4, ::4, 0] == checks).all()
    assert set(np.unique(panel(canvas, 0, 0))) == {0, 255}


def test_long_titles_stay_inside_their_panel():
    canvas = grid({'a title that is far too long for its panel': flat(0), 'b': flat(0)})
    title = canvas[:BAR, :100]
    assert (title < 128).any()
    assert (title[:, 98:] > 200).all()  # it ends before, rather than being cut off


def test_a_legend_shows_every_colour_once():
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    for width in (400, 60):  # in one row, in one column
        canvas = legend(['road', 'car', 'tree'], colors, width)
        assert canvas.shape[1] == width
        areas = [(canvas == color).all(axis=2).sum() for color in colors]
        assert areas[0] == areas[1] == areas[2] > 0
