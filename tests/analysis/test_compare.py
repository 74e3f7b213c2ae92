from __future__ import annotations

import re
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from mmseg_coop.analysis import compare
from mmseg_coop.errors import ConfigError

TOOL = 'tools/analysis_tools/compare_predictions.py'
SIZE, SCALE, BAR, GAP = 64, 4, 22, 4  # panels of 64 are enlarged to 256


def table_of(rows):
    header, *cells = rows
    return [dict(zip(header, row, strict=True)) for row in cells]


def panel(file, row, column):
    image = mmcv.imread(file, channel_order='rgb')
    side = SIZE * SCALE
    top, left = row * (side + BAR + GAP) + BAR, column * (side + GAP)
    return image[top : top + side : SCALE, left : left + side : SCALE]


def differ(maps, first, second):
    labelled = maps['ground truth'] < 11
    return 100 * float((maps[first] != maps[second])[labelled].mean())


def test_the_most_different_frames_of_a_pair(evaluated, tool, rows, tmp_path):
    out = tmp_path / 'out'
    done = tool(TOOL, '--model', *evaluated.pair, '--most-different', 2, '--out', out)
    assert done.returncode == 0, done.stderr
    table = table_of(rows(done.stdout))
    values = {name: differ(maps, 'top', 'bottom') for name, maps in evaluated.maps.items()}
    assert len(set(values.values())) == 4  # the frames differ
    largest = sorted(values, key=lambda name: -values[name])[:2]
    assert [row['frame'] for row in table] == largest
    assert sorted(file.stem for file in out.iterdir()) == sorted(largest)
    palette = np.array([*evaluated.meta['palette'], *[[0, 0, 0]] * 245])
    for row in table:
        maps = evaluated.maps[row['frame']]
        assert float(row['disagreement (%)']) == pytest.approx(values[row['frame']], abs=0.006)
        truth = maps['ground truth']
        labelled = truth < 11
        top, bottom = maps['top'] == truth, maps['bottom'] == truth
        areas = {
            'both right (%)': top & bottom,
            'only top right (%)': top & ~bottom,
            'only bottom right (%)': bottom & ~top,
            'neither right (%)': ~(top | bottom),
        }
        # input, truth, top, bottom / ensemble, map
        drawn = panel(row['figure'], 1, 1)
        for (title, area), color in zip(areas.items(), compare.COLORS, strict=True):
            share = 100 * (area & labelled).sum() / labelled.sum()
            assert float(row[title]) == pytest.approx(share, abs=0.006)
            assert ((drawn == color).all(axis=2) == (area & labelled)).all()
        assert (drawn[~labelled] == 0).all()
        file = evaluated.root / f'img_dir/val/{row["frame"]}.jpg'
        image = mmcv.imread(str(file), channel_order='rgb')
        assert (panel(row['figure'], 0, 0) == image).all()
        places = {'ground truth': (0, 1), 'top': (0, 2), 'bottom': (0, 3), 'ensemble': (1, 0)}
        for name, place in places.items():
            colors = image * 0.2 + palette[maps[name]] * 0.8
            assert np.abs(panel(row['figure'], *place) - colors).max() <= 1


def test_images_are_drawn_as_they_were_loaded(tmp_path):
    stored = np.zeros((SIZE, SIZE, 3), np.uint8)
    stored[: SIZE // 2] = 250, 0, 0
    exif = Image.Exif()
    exif[0x0112] = 3  # viewers turn it by 180 degrees
    Image.fromarray(stored).save(tmp_path / 'image.png', exif=exif)
    meta = dict(classes=('a',), palette=[[0, 0, 0]])
    subject = SimpleNamespace(dataset=SimpleNamespace(metainfo=meta))
    frame = compare.Frame(str(tmp_path / 'image.png'), np.zeros((SIZE, SIZE), np.uint8), {})
    image, _ = compare.draw(frame, [subject], None, columns=2, panel_width=SIZE * SCALE)
    side = SIZE * SCALE
    assert (image[BAR : BAR + side : SCALE, :side:SCALE] == stored).all()


def test_chosen_outputs_of_two_models_on_chosen_frames(evaluated, tool, rows, tmp_path):
    name, maps = sorted(evaluated.maps.items())[2]
    done = tool(
        TOOL,
        *('--model', *evaluated.pair, 'ensemble', '--model', *evaluated.plain),
        *('--between', '1:bottom', '2:prediction', '--frames', name, '--columns', 5),
        *('--out', tmp_path),
    )
    assert done.returncode == 0, done.stderr
    (row,) = table_of(rows(done.stdout))
    assert row['frame'] == name
    share = differ(maps, 'bottom', 'prediction')
    assert 0 < share < 100
    assert float(row['disagreement (%)']) == pytest.approx(share, abs=0.006)
    assert 'only 1:bottom right (%)' in row
    # input, truth, ensemble, the plain model, and the map
    assert mmcv.imread(row['figure']).shape[1] == 5 * SIZE * SCALE + 4 * GAP
    truth = maps['ground truth']
    right = (maps['bottom'] == truth) & (maps['prediction'] != truth)
    assert ((panel(row['figure'], 0, 4) == compare.COLORS[1]).all(axis=2) == right).all()


def test_who_is_right_by_hand():
    truth = np.array([[0, 1, 2, 255, 1]])
    first, second = np.array([[0, 1, 0, 0, 0]]), np.array([[0, 0, 2, 0, 2]])
    image, shares = compare.who_is_right(first, second, truth, 3)
    both, one, other, neither = compare.COLORS
    assert image.tolist() == [[list(color) for color in (both, one, other, (0, 0, 0), neither)]]
    assert shares == [0.25] * 4
    _, shares = compare.who_is_right(first, second, np.full_like(truth, 255), 3)
    assert shares == [0, 0, 0, 0]


def test_wide_panels_are_shrunk():
    panel = np.zeros((100, 400, 3), np.uint8)
    assert compare.shrink(panel, 640) is panel
    assert compare.shrink(panel, 200).shape == (50, 200, 3)


def test_other_classes_and_sizes_are_refused(evaluated):
    one, two = (compare.Subject(*map(str, words)) for words in (evaluated.pair, evaluated.plain))
    name = min(one.frames)
    whole, half = two.predict(name), SegDataSample()
    for key in ('gt_sem_seg', 'pred_sem_seg'):
        setattr(half, key, PixelData(data=whole.get(key).data[:, ::2, ::2]))
    half.set_metainfo(dict(img_path=whole.img_path))
    two.predict = lambda frame: half
    with pytest.raises(ConfigError, match='use the same test pipeline for all models'):
        compare.read_frame([one, two], name, range(2))
    two.classes = ['road'] * 11
    message = re.escape('fcn_mnv2 has other classes than cross-coop_r18-mnv2')
    with pytest.raises(ConfigError, match=message):
        compare.check_models([one, two], [name])
