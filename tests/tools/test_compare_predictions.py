from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools/analysis_tools'
MINI = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
SIZE, SCALE, BAR, GAP = 64, 4, 22, 4  # panels of 64 are enlarged to 256
PLAIN = f"""
_base_ = {str(MINI)!r}
model = dict(
    _delete_=True,
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(type='MobileNetV2', widen_factor=0.25, out_indices=(1, 6)),
    decode_head=dict(
        type='FCNHead', in_channels=80, in_index=1, channels=8, num_convs=1, num_classes=11,
        norm_cfg=dict(type='BN'),
    ),
    test_cfg=dict(mode='whole'),
)
"""


@pytest.fixture(scope='module')
def tool():
    """The tool as a module."""
    sys.path.insert(0, str(TOOLS))
    yield importlib.import_module('compare_predictions')
    sys.path.remove(str(TOOLS))


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """Data, and a config with a checkpoint of each of two models that were never trained."""
    root = tmp_path_factory.mktemp('compare')
    subprocess.run(
        [
            *(sys.executable, ROOT / 'tools/dataset_converters/make_mini_dataset.py'),
            *('--layout', 'camvid', '--out', root / 'data'),
            *('--train', '1', '--val', '4', '--size', f'{SIZE}x{SIZE}'),
        ],
        check=True,
        capture_output=True,
    )
    plain = root / 'fcn_mnv2_1xb8-200_camvid-128x128.py'
    plain.write_text(PLAIN)
    init_default_scope('mmseg')
    models = {}
    for name, config in (('pair', MINI), ('plain', plain)):
        torch.manual_seed(3)
        cfg = Config.fromfile(config)
        model = MODELS.build(cfg.model).eval()
        checkpoint = root / f'{name}.pth'
        cfg.test_dataloader.dataset.data_root = str(root / 'data')
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        adapt_norms(model, dataset)
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        models[name] = (config, checkpoint, model, dataset)
    return root, models


def adapt_norms(model, dataset):
    """Give the norms the statistics of the images, or else all pixels are predicted alike."""
    batch = pseudo_collate([dataset[index] for index in range(len(dataset))])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1
    with torch.no_grad():
        model.train()(model.data_preprocessor(batch)['inputs'], mode='tensor')
    model.eval()


@pytest.fixture(scope='module')
def expected(setting):
    """Label maps of every frame, by name and output."""
    maps = {}
    for name, (_, _, model, dataset) in setting[1].items():
        for index in range(len(dataset)):
            with torch.no_grad():
                sample = model.test_step(pseudo_collate([dataset[index]]))[0]
            frame = maps.setdefault(Path(sample.img_path).stem, {})
            frame['truth'] = sample.gt_sem_seg.data[0].numpy()
            outputs = (
                sample.pred_outputs if name == 'pair' else dict(prediction=sample.pred_sem_seg.data)
            )
            for output, label_map in outputs.items():
                frame[output] = label_map[0].numpy()
    return maps


def arguments(setting, *words):
    data = setting[0] / 'data'
    return [*map(str, words), '--cfg-options', f'test_dataloader.dataset.data_root={data}']


def model_words(setting, name):
    return ['--model', *map(str, setting[1][name][:2])]


def run(setting, *words):
    return subprocess.run(
        [sys.executable, TOOLS / 'compare_predictions.py', *arguments(setting, *words)],
        text=True,
        capture_output=True,
        check=False,
    )


def rows(text):
    """The table's rows as dicts."""
    header, *cells = [
        [cell.strip() for cell in line[1:-1].split('|')]
        for line in text.splitlines()
        if line.startswith('|') and '---' not in line
    ]
    return [dict(zip(header, row, strict=True)) for row in cells]


def panel(file, row, column):
    picture = mmcv.imread(str(file), channel_order='rgb')
    side = SIZE * SCALE
    top, left = row * (side + BAR + GAP) + BAR, column * (side + GAP)
    return picture[top : top + side : SCALE, left : left + side : SCALE]


def differ(maps, first, second):
    labelled = maps['truth'] < 11
    return 100 * float((maps[first] != maps[second])[labelled].mean())


def test_the_most_different_frames_of_a_pair(setting, expected, tmp_path, tool):
    out = tmp_path / 'out'
    done = run(setting, *model_words(setting, 'pair'), '--most-different', '2', '--out', out)
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    values = {name: differ(maps, 'top', 'bottom') for name, maps in expected.items()}
    assert len(set(values.values())) == 4  # the frames differ
    largest = sorted(values, key=lambda name: -values[name])[:2]
    assert [row['frame'] for row in table] == largest
    assert sorted(file.stem for file in out.iterdir()) == sorted(largest)
    for row in table:
        maps = expected[row['frame']]
        assert float(row['disagreement (%)']) == pytest.approx(values[row['frame']], abs=0.006)
        labelled = maps['truth'] < 11
        top, bottom = maps['top'] == maps['truth'], maps['bottom'] == maps['truth']
        areas = {
            'both right (%)': top & bottom,
            'only top right (%)': top & ~bottom,
            'only bottom right (%)': bottom & ~top,
            'neither right (%)': ~(top | bottom),
        }
        # input, truth, top, bottom / ensemble, map
        drawn = panel(row['picture'], 1, 1)
        for (title, area), color in zip(areas.items(), tool.COLORS, strict=True):
            share = 100 * (area & labelled).sum() / labelled.sum()
            assert float(row[title]) == pytest.approx(share, abs=0.006)
            assert ((drawn == color).all(axis=2) == (area & labelled)).all()
        assert (drawn[~labelled] == 0).all()
        image = mmcv.imread(
            str(setting[0] / f'data/img_dir/val/{row["frame"]}.jpg'), channel_order='rgb'
        )
        assert (panel(row['picture'], 0, 0) == image).all()
        palette = np.array(setting[1]['pair'][3].metainfo['palette'] + [[0, 0, 0]] * 245)
        places = dict(truth=(0, 1), top=(0, 2), bottom=(0, 3), ensemble=(1, 0))
        for name, place in places.items():
            colors = image * 0.2 + palette[maps[name]] * 0.8
            assert np.abs(panel(row['picture'], *place) - colors).max() <= 1


def test_images_are_drawn_as_they_were_loaded(tmp_path, tool):
    stored = np.zeros((SIZE, SIZE, 3), np.uint8)
    stored[: SIZE // 2] = 250, 0, 0
    exif = Image.Exif()
    exif[0x0112] = 3  # viewers turn it by 180 degrees
    Image.fromarray(stored).save(tmp_path / 'image.png', exif=exif)
    meta = dict(classes=('a',), palette=[[0, 0, 0]])
    subject = SimpleNamespace(dataset=SimpleNamespace(metainfo=meta))
    frame = tool.Frame(str(tmp_path / 'image.png'), np.zeros((SIZE, SIZE), np.uint8), {})
    picture, _ = tool.draw(frame, [subject], None, columns=2, panel_width=SIZE * SCALE)
    side = SIZE * SCALE
    assert (picture[BAR : BAR + side : SCALE, :side:SCALE] == stored).all()


def test_chosen_outputs_of_two_models_on_chosen_frames(setting, expected, tmp_path, tool):
    name = sorted(expected)[2]
    done = run(
        setting,
        *(*model_words(setting, 'pair'), 'ensemble', *model_words(setting, 'plain')),
        *('--between', '1:bottom', '2:prediction', '--frames', name, '--columns', '5'),
        *('--out', tmp_path),
    )
    assert done.returncode == 0, done.stderr
    (row,) = rows(done.stdout)
    assert row['frame'] == name
    share = differ(expected[name], 'bottom', 'prediction')
    assert 0 < share < 100
    assert float(row['disagreement (%)']) == pytest.approx(share, abs=0.006)
    assert 'only 1:bottom right (%)' in row
    # input, truth, ensemble, the plain model, and the map
    picture = mmcv.imread(row['picture'])
    assert picture.shape[1] == 5 * SIZE * SCALE + 4 * GAP
    right = (expected[name]['bottom'] == expected[name]['truth']) & (
        expected[name]['prediction'] != expected[name]['truth']
    )
    drawn = panel(row['picture'], 0, 4)
    assert ((drawn == tool.COLORS[1]).all(axis=2) == right).all()


def test_who_is_right_by_hand(tool):
    truth = np.array([[0, 1, 2, 255, 1]])
    first, second = np.array([[0, 1, 0, 0, 0]]), np.array([[0, 0, 2, 0, 2]])
    picture, shares = tool.who_is_right(first, second, truth, 3)
    both, one, other, neither = tool.COLORS
    assert picture.tolist() == [[list(color) for color in (both, one, other, (0, 0, 0), neither)]]
    assert shares == [0.25] * 4
    _, shares = tool.who_is_right(first, second, np.full_like(truth, 255), 3)
    assert shares == [0, 0, 0, 0]


def test_wide_panels_are_shrunk(tool):
    panel = np.zeros((100, 400, 3), np.uint8)
    assert tool.shrink(panel, 640) is panel
    assert tool.shrink(panel, 200).shape == (50, 200, 3)


def call(tool, monkeypatch, capsys, words):
    """Run the tool in this process and return its exit code and its last line."""
    monkeypatch.setattr(sys, 'argv', ['compare_predictions.py', *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        tool.main()
    if isinstance(stop.value.code, str):
        return 1, stop.value.code
    return stop.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['{pair}', '--frames', 'mini_00000'], "no frame 'mini_00000'; .* Did you mean mini_0"),
        (['{pair},left', '--frames', 'a'], "no output 'left'; it has top, bottom, ensemble"),
        (
            ['{pair}', '--between', 'top', '3:top', '--frames', 'a'],
            "with a number from 1 to 1, not '3:top'",
        ),
        (['{pair}', '--between', 'top', 'left', '--frames', 'a'], "no output 'left'"),
        (['{plain}', '--most-different', '1'], 'needs two networks; add another --model'),
        (['{mixed}', '--frames', 'a'], 'checkpoint .*plain.pth.* does not fit the config'),
        (['{gone}', '--frames', 'a'], "checkpoint 'gone.pth' does not exist"),
        (['{full}', '--frames', 'a'], 'holds files; choose another folder, or add --force'),
    ],
)
def test_wrong_input_ends_in_one_line(words, message, setting, tmp_path, tool, monkeypatch, capsys):
    models = setting[1]
    named = {
        '{pair}': model_words(setting, 'pair'),
        '{pair},left': [*model_words(setting, 'pair'), 'top,left'],
        '{plain}': model_words(setting, 'plain'),
        '{mixed}': ['--model', MINI, models['plain'][1]],
        '{gone}': ['--model', MINI, 'gone.pth'],
        '{full}': model_words(setting, 'pair'),
    }
    old = tmp_path / 'old.png'
    if words[0] == '{full}':
        old.write_text('old')
    words = [*named[words[0]], *words[1:], '--out', tmp_path]
    code, line = call(tool, monkeypatch, capsys, arguments(setting, *words))
    assert code == 1
    assert re.search(f'^error: .*{message}', line), line
    assert '\n' not in line
    assert [file.name for file in tmp_path.iterdir()] == (['old.png'] if old.exists() else [])


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--model', 'a.py', '--frames', 'a'], 'takes CONFIG CHECKPOINT .*, not .a.py'),
        (['--model', 'a', 'b', '--most-different', '0'], '--most-different has to be at least 1'),
        (['--model', 'a', 'b'], 'one of the arguments --frames --most-different is required'),
        (['--model', 'a', 'b', '--frames', 'a', '--device', 'gpu'], "not 'gpu'"),
    ],
)
def test_wrong_arguments_are_named(words, message, tmp_path, tool, monkeypatch, capsys):
    code, line = call(tool, monkeypatch, capsys, [*words, '--out', tmp_path / 'out'])
    assert code == 2
    assert re.search(message, line), line


def test_other_classes_and_sizes_are_refused(setting, tool):
    one, two = (
        tool.Subject(str(config), str(checkpoint), cfg_options=options, device='cpu')
        for config, checkpoint, options in (
            (*setting[1]['pair'][:2], data_options(setting)),
            (*setting[1]['plain'][:2], data_options(setting)),
        )
    )
    name = min(one.frames)
    predict = two.predict

    def at_half_size(frame):
        whole, half = predict(frame), SegDataSample()
        for key in ('gt_sem_seg', 'pred_sem_seg'):
            data = whole.get(key).data[:, ::2, ::2]
            setattr(half, key, PixelData(data=data))
        return half

    two.predict = at_half_size
    with pytest.raises(SystemExit, match='use configs with the same test pipeline'):
        tool.read_frame([one, two], name, range(2))
    two.dataset._metainfo['classes'] = ('road',) * 11
    with pytest.raises(ValueError, match='fcn_mnv2 has other classes than cross-coop_r18-mnv2'):
        tool.check_models([one, two], [name])


def data_options(setting):
    return {'test_dataloader.dataset.data_root': str(setting[0] / 'data')}
