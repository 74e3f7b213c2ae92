from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model
from mmseg.registry import MODELS

from mmseg_coop.apis.model import load_model
from mmseg_coop.config import forget_pretrained

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools/deployment'
MINI = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
DPANET = ROOT / 'configs/dpanet/dpanet_mnv2-d8_1xb6-2k_camvid-180x240.py'
NAMES = ['top', 'bottom', 'ensemble']
#: For tools in processes of their own: the checkout itself, where it is not installed.
PYTHONPATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
ENVIRONMENT = {**os.environ, 'PYTHONPATH': PYTHONPATH}
HAS_PROGRAM = (
    'dynamic_shapes' in inspect.signature(getattr(torch.export, 'export', print)).parameters
)

for package in ('onnx', 'onnxruntime'):
    pytest.importorskip(package, reason=f'{package} is what the export needs')
import onnxruntime  # noqa: E402


def untrained(config, file, options=None):
    """Write a checkpoint with random weights whose classes differ from pixel to pixel."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options or {})
    forget_pretrained(cfg.model)
    init_default_scope('mmseg')  # fixtures of a module come before those of a test
    torch.manual_seed(1)
    model = MODELS.build(cfg.model)
    for name, parameter in model.named_parameters():
        if 'conv_seg' in name:
            torch.nn.init.normal_(parameter, std=2)
    torch.save(dict(state_dict=model.state_dict()), file)
    return file


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A config that resizes, its checkpoint, and images of several sizes."""
    folder = tmp_path_factory.mktemp('deployment')
    config = folder / 'mini_resized.py'
    config.write_text(
        f"""_base_ = ['{MINI}']
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 64), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""
    )
    untrained(config, folder / 'model.pth')
    (folder / 'images').mkdir()
    generator = np.random.default_rng(0)
    for name, size in dict(wide=(50, 120), tall=(130, 70), square=(64, 64)).items():
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'images/{name}.png'), cv2.resize(coarse, size[::-1]))
    return folder


def run(tool, *arguments):
    return subprocess.run(
        [sys.executable, TOOLS / tool, *map(str, arguments)],
        text=True,
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
    )


@pytest.fixture(scope='module')
def dynamic(work):
    done = run(
        'export_onnx.py',
        *(work / 'mini_resized.py', work / 'model.pth', '--out', work / 'dynamic.onnx'),
        *('--dynamic', '--size', '64x96'),
    )
    assert done.returncode == 0, done.stderr
    return work / 'dynamic.onnx', done.stdout


@pytest.fixture
def export(monkeypatch, capsys):
    """Call export_onnx.py in this process, which saves the imports; returns its last words."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import export_onnx

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['export_onnx.py', *map(str, arguments)])
        try:
            export_onnx.main()
        except SystemExit as end:
            return str(end.code) if end.code != 2 else capsys.readouterr().err.splitlines()[-1]
        return ''

    call.module = export_onnx
    return call


@pytest.fixture(scope='module')
def model(work):
    return load_model(Config.fromfile(work / 'mini_resized.py'), str(work / 'model.pth'))


def rgb_batch(count, height, width):
    generator = np.random.default_rng(5)
    return generator.integers(0, 256, (count, 3, height, width)).astype(np.float32)


@torch.no_grad()
def pytorch(model, rgb):
    """Logits of all outputs, through mmseg's own preprocessing of the BGR image that it loads."""
    inputs = [torch.from_numpy(image[::-1].astype(np.uint8)) for image in rgb]
    x = model.data_preprocessor(dict(inputs=inputs))['inputs']
    logits = model.encode_decode(x, [dict(img_shape=rgb.shape[2:])])
    return {name: value.numpy() for name, value in model.split_outputs(logits).items()}


def session_of(file):
    return onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])


@pytest.mark.parametrize('shape', [(1, 64, 96), (3, 81, 53), (2, 120, 128)])
def test_dynamic_graph_equals_pytorch_at_any_size(dynamic, model, shape):
    session = session_of(dynamic[0])
    assert [output.name for output in session.get_outputs()] == NAMES
    rgb = rgb_batch(*shape)
    for name, logits in zip(NAMES, session.run(NAMES, {'image': rgb}), strict=True):
        expected = pytorch(model, rgb)[name]
        assert logits.shape == (shape[0], 11, *shape[1:])
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_report_names_both_sizes_and_every_output(dynamic):
    lines = [line for line in dynamic[1].splitlines() if line.startswith('ONNX,')]
    assert len(lines) == 6
    assert len({line.split(':')[0] for line in lines}) == 2


def test_metadata_tells_all_that_an_application_needs(dynamic):
    stored = session_of(dynamic[0]).get_modelmeta().custom_metadata_map
    info = {key: json.loads(value) for key, value in stored.items()}
    assert info['classes'][:3] == ['sky', 'building', 'pole']
    assert info['palette'][1] == [128, 0, 0]
    assert (info['outputs'], info['chosen_output']) == (NAMES, 'ensemble')
    assert info['resize'] == dict(scale=[96, 64], keep_ratio=True)
    assert info['padding'] == [127.5] * 3
    assert info['config'] == 'mini_resized'


def test_fixed_size_and_chosen_outputs(export, work, model):
    out = work / 'fixed.onnx'
    arguments = (work / 'mini_resized.py', work / 'model.pth', '--out', out)
    assert export(*arguments, '--size', '64x80', '--outputs', 'ensemble', 'top') == ''
    session = session_of(out)
    assert session.get_inputs()[0].shape == [1, 3, 64, 80]
    assert [output.name for output in session.get_outputs()] == ['top', 'ensemble']
    rgb = rgb_batch(1, 64, 80)
    expected = pytorch(model, rgb)['top']
    np.testing.assert_allclose(
        session.run(['top'], {'image': rgb})[0], expected, atol=1e-4 * np.abs(expected).max()
    )
    assert 'exists' in export(*arguments)


def test_networks_that_take_bgr(export, work, tmp_path):
    options = {
        'model.data_preprocessor.bgr_to_rgb': False,
        'model.data_preprocessor.mean': [10.0, 20.0, 30.0],
    }
    message = export(
        *(work / 'mini_resized.py', work / 'model.pth', '--out', tmp_path / 'a.onnx'),
        *('--size', '64x64', '--cfg-options', 'model.data_preprocessor.bgr_to_rgb=False'),
        'model.data_preprocessor.mean=[10.0,20.0,30.0]',
    )
    assert message == ''
    cfg = Config.fromfile(work / 'mini_resized.py')
    cfg.merge_from_dict(options)
    expected = pytorch(load_model(cfg, str(work / 'model.pth')), rgb_batch(1, 64, 64))['top']
    session = session_of(tmp_path / 'a.onnx')
    np.testing.assert_allclose(
        session.run(['top'], {'image': rgb_batch(1, 64, 64)})[0],
        expected,
        atol=1e-4 * np.abs(expected).max(),
    )
    padding = json.loads(session.get_modelmeta().custom_metadata_map['padding'])
    assert padding == [30, 20, 10]  # RGB as all of the interface


def test_a_mismatch_leaves_no_file(export, work, tmp_path, monkeypatch):
    runner = export.module.onnx_runner

    def wrong_at_another_size(file, outputs):
        run_file = runner(file, outputs)
        return lambda image: [
            logits + (0.01 * abs(logits).max() if image.shape[2] != 64 else 0)
            for logits in run_file(image)
        ]

    monkeypatch.setattr(export.module, 'onnx_runner', wrong_at_another_size)
    message = export(
        *(work / 'mini_resized.py', work / 'model.pth', '--out', tmp_path / 'a.onnx'),
        *('--dynamic', '--size', '64x64'),
    )
    assert 'x 49 x 83: top differs from PyTorch by' in message
    assert 'nothing was written' in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'program',
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                not HAS_PROGRAM, reason='torch.export of this torch takes no dynamic_shapes'
            ),
        ),
    ],
    ids=['ONNX', 'torch.export'],
)
def test_single_output_model(export, tmp_path, program):
    checkpoint = untrained(DPANET, tmp_path / 'dpanet.pth')
    option, size = ('--program', (64, 48)) if program else ('--dynamic', (70, 41))
    assert export(DPANET, checkpoint, option, '--size', '64x48') == ''
    model = load_model(Config.fromfile(DPANET), str(checkpoint))
    rgb = rgb_batch(1, *size)
    with torch.no_grad():
        x = model.data_preprocessor(dict(inputs=[torch.from_numpy(rgb[0, ::-1].copy())]))
        expected = model.encode_decode(x['inputs'], [dict(img_shape=size)]).numpy()
    if program:
        extra = {'metadata.json': ''}
        loaded = torch.export.load(tmp_path / 'dpanet.pt2', extra_files=extra)
        assert json.loads(extra['metadata.json'])['outputs'] == ['prediction']
        found = loaded.module()(torch.from_numpy(rgb))[0].numpy()
    else:
        session = session_of(tmp_path / 'dpanet.onnx')
        assert [output.name for output in session.get_outputs()] == ['prediction']
        found = session.run(None, {'image': rgb})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PROGRAM, reason='torch.export of this torch takes no dynamic_shapes')
def test_program_of_networks_that_cooperate(export, work, model, tmp_path):
    arguments = (work / 'mini_resized.py', work / 'model.pth', '--out', tmp_path / 'a.onnx')
    assert export(*arguments, '--dynamic', '--size', '64x96', '--program') == ''
    rgb = rgb_batch(1, 50, 77)
    found = torch.export.load(tmp_path / 'a.pt2').module()(torch.from_numpy(rgb))
    for name, logits in zip(NAMES, found, strict=True):
        expected = pytorch(model, rgb)[name]
        np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4 * np.abs(expected).max())


#: Networks whose coarsest map is 32 times as small as the image: one pixel at 32, two at 33.
STRIDE_32 = {
    'model.backbone.networks.top.strides': (1, 2, 2, 2),
    'model.backbone.networks.top.dilations': (1, 1, 1, 1),
    'model.backbone.networks.bottom.strides': (1, 2, 2, 2, 1, 2, 1),
    'model.backbone.networks.bottom.dilations': (1, 1, 1, 1, 1, 1, 1),
}


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(getattr(torch.export, 'Dim', None), 'AUTO'), reason='needs torch >= 2.6'
)
def test_smallest_size_of_a_program_is_the_one_it_takes(export, tmp_path, capsys):
    checkpoint = untrained(MINI, tmp_path / 'a.pth', STRIDE_32)
    options = [f'{key}={value}'.replace(' ', '') for key, value in STRIDE_32.items()]
    arguments = (MINI, checkpoint, '--dynamic', '--program', '--cfg-options', *options)
    assert export(*arguments, '--size', '64x96') == ''
    lines = capsys.readouterr().out.splitlines()
    assert 'torch.export takes images of 33 x 33 or more' in lines
    assert len([line for line in lines if '1 x 3 x 33 x 33: ' in line]) == len(NAMES)
    program = torch.export.load(tmp_path / 'a.pt2').module()
    rgb = rgb_batch(1, 33, 50)
    cfg = Config.fromfile(MINI)
    cfg.merge_from_dict(STRIDE_32)
    expected = pytorch(load_model(cfg, str(checkpoint)), rgb)
    for name, logits in zip(NAMES, program(torch.from_numpy(rgb)), strict=True):
        bound = 1e-4 * np.abs(expected[name]).max()
        np.testing.assert_allclose(logits.numpy(), expected[name], atol=bound)
    with pytest.raises(AssertionError, match='>= 33'):
        program(torch.from_numpy(rgb_batch(1, 32, 50)))
    message = export(*arguments, '--size', '32x32', '--overwrite')
    assert 'torch.export frees the sides up to' in message
    assert 'give a greater --size' in message


@pytest.mark.slow
@pytest.mark.parametrize('arguments', [(), ('--dynamic',)], ids=['fixed', 'dynamic'])
def test_dynamo_exporter(export, work, model, tmp_path, arguments):
    pytest.importorskip('onnxscript', reason='the exporter needs onnxscript')
    if 'external_data' not in inspect.signature(torch.onnx.export).parameters:
        pytest.skip('this torch has no such exporter')
    message = export(
        *(work / 'mini_resized.py', work / 'model.pth', '--out', tmp_path / 'a.onnx'),
        *('--size', '64x64', '--exporter', 'dynamo', *arguments),
    )
    assert message == ''
    rgb = rgb_batch(1, *((51, 90) if arguments else (64, 64)))
    expected = pytorch(model, rgb)['ensemble']
    found = session_of(tmp_path / 'a.onnx').run(['ensemble'], {'image': rgb})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--outputs', 'left'), "output 'left' is unknown; the model has ['top', 'bottom', 'ens"),
        (('--size', '64'), "takes HEIGHTxWIDTH such as 513x513, not '64'"),
        (('--size', '8x64'), "takes sides of at least 32, not '8x64'"),
        (('--out', 'model.pb'), "--out 'model.pb' has to end in .onnx"),
        (('--opset', '99'), '--opset 99: the trace exporter writes 11 to '),
    ],
)
def test_export_refuses_wrong_arguments(export, work, arguments, message):
    assert message in export(work / 'mini_resized.py', work / 'model.pth', *arguments)


def test_size_without_crop_size_is_that_of_the_data_preprocessor(export, work, tmp_path):
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(work / "mini_resized.py")!r}\ncrop_size = None\n'
        'model = dict(data_preprocessor=dict(size=(48, 64)))\n'
    )
    out = tmp_path / 'a.onnx'
    assert export(tmp_path / 'config.py', work / 'model.pth', '--out', out) == ''
    assert session_of(out).get_inputs()[0].shape == [1, 3, 48, 64]


def test_export_refuses_a_checkpoint_of_another_model(export, work, tmp_path):
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), tmp_path / 'other.pth')
    message = export(work / 'mini_resized.py', tmp_path / 'other.pth')
    assert 'does not fit the config: it lacks' in message
    assert 'does not exist' in export(work / 'mini_resized.py', tmp_path / 'gone.pth')


#: Runs a script where nothing but numpy, OpenCV and onnxruntime can be imported.
BARE = """
import runpy, sys
for name in ('torch', 'mmcv', 'mmengine', 'mmseg', 'mmseg_coop', 'onnx', 'PIL', 'scipy'):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def infer(*arguments):
    return subprocess.run(
        [sys.executable, '-c', BARE, *map(str, (TOOLS / 'onnx_inference.py', *arguments))],
        text=True,
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
    )


def test_inference_without_torch_equals_mmseg(dynamic, work, model, tmp_path):
    done = infer(dynamic[0], work / 'images', '--out', tmp_path / 'out', '--labels')
    assert done.returncode == 0, done.stderr
    assert '3 images, outputs top, bottom, ensemble' in done.stdout
    for name in ('wide', 'tall', 'square'):
        image = cv2.imread(str(work / f'images/{name}.png'))
        expected = inference_model(model, image).pred_outputs
        for output in NAMES:
            label = cv2.imread(str(tmp_path / f'out/{output}/{name}.png'), cv2.IMREAD_UNCHANGED)
            reference = expected.get(output)[0].numpy()
            assert label.shape == image.shape[:2]
            assert len(np.unique(label)) > 1
            assert (label == reference).mean() > 0.999
        # four panels and a legend below
        picture = cv2.imread(str(tmp_path / f'out/{name}.png'))
        scale = -(-240 // image.shape[0])
        assert picture.shape[1] == 4 * scale * image.shape[1] + 3 * 4
        assert picture.shape[0] > scale * image.shape[0] + 22 + 22
    again = infer(dynamic[0], work / 'images', '--out', tmp_path / 'out')
    assert again.returncode == 1
    assert 'exists; choose another --out, or --overwrite' in again.stderr.splitlines()[-1]


def test_inference_fits_images_into_a_fixed_graph(export, work, model, tmp_path):
    arguments = (work / 'mini_resized.py', work / 'model.pth', '--out', tmp_path / 'a.onnx')
    assert export(*arguments, '--size', '64x64', '--outputs', 'top') == ''
    done = infer(tmp_path / 'a.onnx', work / 'images/wide.png', '--out', tmp_path, '--labels')
    assert done.returncode == 0, done.stderr
    image = cv2.imread(str(work / 'images/wide.png'))  # 50 x 120, hence 27 x 64 in the graph
    rgb = np.full((1, 3, 64, 64), 127.5, np.float32)
    rgb[0, :, :27] = cv2.resize(image, (64, 27))[..., ::-1].transpose(2, 0, 1)
    with torch.no_grad():
        logits = model.encode_decode(
            torch.from_numpy((rgb - 127.5) / 64), [dict(img_shape=(64, 64))]
        )
        logits = model.split_outputs(logits)['top'][..., :27, :]
        logits = torch.nn.functional.interpolate(logits, size=(50, 120), mode='bilinear')
    label = cv2.imread(str(tmp_path / 'top/wide.png'), cv2.IMREAD_UNCHANGED)
    assert (label == logits[0].argmax(0).numpy()).mean() > 0.999


@pytest.mark.parametrize(
    ('arguments', 'names'),
    [
        (('--dynamic', '--size', '64x64'), ('wide', 'tall', 'square')),
        (('--size', '48x40'), ('tall', 'square')),  # wide is less than 48 high
    ],
    ids=['dynamic', 'fixed'],
)
def test_inference_with_a_sliding_window(export, work, tmp_path, arguments, names):
    options = {
        'model.test_cfg.mode': 'slide',
        'model.test_cfg.crop_size': (48, 40),
        'model.test_cfg.stride': (20, 32),
    }
    words = [f'{key}={value}'.replace(' ', '') for key, value in options.items()]
    message = export(
        *(work / 'mini_resized.py', work / 'model.pth', '--out', tmp_path / 'a.onnx'),
        *(*arguments, '--cfg-options', *words),
    )
    assert message == ''
    done = infer(tmp_path / 'a.onnx', work / 'images', '--out', tmp_path, '--labels')
    assert done.returncode == 0, done.stderr
    cfg = Config.fromfile(work / 'mini_resized.py')
    cfg.merge_from_dict(options)
    model = load_model(cfg, str(work / 'model.pth'))
    for name in names:
        expected = inference_model(model, cv2.imread(str(work / f'images/{name}.png')))
        for output in NAMES:
            label = cv2.imread(str(tmp_path / f'{output}/{name}.png'), cv2.IMREAD_UNCHANGED)
            assert (label == expected.pred_outputs.get(output)[0].numpy()).mean() > 0.999


def test_inference_with_a_binary_model(export, work, tmp_path):
    options = {
        'model.decode_head.num_classes': 2,
        'model.decode_head.out_channels': 1,
        'model.decode_head.loss_decode.use_sigmoid': True,
    }
    checkpoint = untrained(work / 'mini_resized.py', tmp_path / 'binary.pth', options)
    cfg = Config.fromfile(work / 'mini_resized.py')
    cfg.merge_from_dict(options)
    model = load_model(cfg, str(checkpoint))
    # a threshold that parts the pixels of untrained weights
    threshold = float(np.median(1 / (1 + np.exp(-pytorch(model, rgb_batch(1, 64, 64))['bottom']))))
    model.decode_head.threshold = options['model.decode_head.threshold'] = threshold
    words = [f'{key}={value}' for key, value in options.items()]
    message = export(
        *(work / 'mini_resized.py', checkpoint, '--dynamic', '--size', '64x64'),
        *('--cfg-options', *words),
    )
    assert message == ''
    done = infer(
        *(tmp_path / 'binary.onnx', work / 'images', '--out', tmp_path, '--labels'),
        *('--outputs', 'bottom'),
    )
    assert done.returncode == 0, done.stderr
    found = []
    for name in ('wide', 'tall', 'square'):
        image = cv2.imread(str(work / f'images/{name}.png'))
        expected = inference_model(model, image).pred_outputs.get('bottom')[0].numpy()
        found.append(cv2.imread(str(tmp_path / f'bottom/{name}.png'), cv2.IMREAD_UNCHANGED))
        assert (found[-1] == expected).mean() > 0.999
    assert set(np.concatenate([label.ravel() for label in found])) == {0, 1}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('MODEL', 'gone.png', '--out', 'x'), "'gone.png' does not exist"),
        (('MODEL', 'IMAGES', '--out', 'x', '--outputs', 'left'), "output 'left' is unknown"),
        (('MODEL', 'IMAGES', '--out', 'x', '--providers', 'Abacus'), "'Abacus' is not available"),
        (('CONFIG', 'IMAGES', '--out', 'x'), 'cannot be loaded'),
        (('MODEL', 'CONFIG', '--out', 'x'), 'is not an image that OpenCV reads'),
    ],
)
def test_inference_refuses_wrong_arguments(dynamic, work, tmp_path, arguments, message):
    paths = dict(
        MODEL=dynamic[0],
        IMAGES=work / 'images',
        CONFIG=work / 'mini_resized.py',
        x=tmp_path / 'x',
    )
    done = infer(*(paths.get(argument, argument) for argument in arguments))
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr
