"""What is exported computes what PyTorch does, and is used without PyTorch."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import inference_model

from mmseg_coop.apis import export as export_module
from mmseg_coop.apis import load_model
from tests.conftest import MINI, ROOT, write_mini_with

DPANET = ROOT / 'configs/dpanet/dpanet_mnv2-d8_1xb6-600_camvid-180x240.py'
NAMES = ['top', 'bottom', 'ensemble']
SIZES = dict(wide=(50, 120), tall=(130, 70), square=(64, 64))
needs_programs = pytest.mark.skipif(
    'dynamic_shapes' not in inspect.signature(getattr(torch.export, 'export', print)).parameters,
    reason='torch.export of this torch takes no dynamic_shapes',
)

for package in ('onnx', 'onnxruntime'):
    pytest.importorskip(package, reason=f'{package} is what the export needs')
import onnx  # noqa: E402
import onnxruntime  # noqa: E402


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A config that resizes, and images of several sizes."""
    folder = tmp_path_factory.mktemp('deployment')
    resize = dict(type='Resize', scale=(96, 64), keep_ratio=True)
    write_mini_with(folder / 'mini_resized.py', resize)
    (folder / 'images').mkdir()
    generator = np.random.default_rng(0)
    for name, size in SIZES.items():
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'images/{name}.png'), cv2.resize(coarse, size[::-1]))
    return folder


@pytest.fixture(scope='module')
def export(run_tool, work, untrained_mini):
    """Run export_onnx.py, with its options in one text."""

    def call(out, text='', config=None, checkpoint=untrained_mini, options=None, code=0):
        words = [config or work / 'mini_resized.py', checkpoint, '--out', out, *text.split()]
        if options:
            words += ['--cfg-options', *(f'{k}={v}'.replace(' ', '') for k, v in options.items())]
        return run_tool('tools/deployment/export_onnx.py', *words, code=code)

    return call


@pytest.fixture(scope='module')
def dynamic(export, work):
    printed = export(work / 'dynamic.onnx', '--dynamic --size 64x96')
    return work / 'dynamic.onnx', printed


@pytest.fixture(scope='module')
def fixed(export, work):
    export(work / 'fixed.onnx', '--size 64x80 --outputs ensemble top')
    return work / 'fixed.onnx'


@pytest.fixture(scope='module')
def load(work, untrained_mini):
    """Load the model in PyTorch, with other values of its config."""

    def load(options=None, config=work / 'mini_resized.py', checkpoint=untrained_mini):
        cfg = Config.fromfile(config)
        cfg.merge_from_dict(options or {})
        return load_model(cfg, str(checkpoint))

    return load


def rgb_batch(count, height, width):
    generator = np.random.default_rng(5)
    return generator.integers(0, 256, (count, 3, height, width)).astype(np.float32)


@torch.no_grad()
def pytorch(model, rgb):
    """Logits of all outputs, through mmseg's own preprocessing of the BGR image that it loads."""
    inputs = [torch.from_numpy(image[::-1].copy()) for image in rgb]
    x = model.data_preprocessor(dict(inputs=inputs))['inputs']
    logits = model.encode_decode(x, [dict(img_shape=rgb.shape[2:])])
    split = getattr(model, 'split_outputs', lambda logits: dict(prediction=logits))(logits)
    return {name: value.numpy() for name, value in split.items()}


def session_of(file):
    return onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])


def metadata_of(file):
    stored = session_of(file).get_modelmeta().custom_metadata_map
    return {key: json.loads(value) for key, value in stored.items()}


def check_equal(file, model, shape, names):
    """Hold the logits of an ONNX file or a program to those of PyTorch."""
    rgb = rgb_batch(*shape)
    if file.suffix == '.onnx':
        session = session_of(file)
        assert [output.name for output in session.get_outputs()] == names
        found = session.run(names, {'image': rgb})
    else:
        extra = {'metadata.json': ''}
        program = torch.export.load(file, extra_files=extra)
        assert json.loads(extra['metadata.json'])['outputs'] == names
        found = [logits.numpy() for logits in program.module()(torch.from_numpy(rgb))]
    expected = pytorch(model, rgb)
    for name, logits in zip(names, found, strict=True):
        assert logits.shape == (shape[0], 11, *shape[1:])
        bound = 1e-4 * np.abs(expected[name]).max()
        np.testing.assert_allclose(logits, expected[name], atol=bound)


@pytest.mark.parametrize('shape', [(1, 64, 96), (3, 81, 53), (2, 120, 128)])
def test_dynamic_graph_equals_pytorch_at_any_size(dynamic, load, shape):
    check_equal(dynamic[0], load(), shape, NAMES)


@needs_programs
def test_an_optimized_model_is_exported_without_batch_norms(export, load, tmp_path):
    """The exporters of ONNX fold them anyway, unlike torch.export."""
    export(tmp_path / 'a.onnx', '--optimize --program --size 64x96')
    graph = onnx.load(tmp_path / 'a.onnx').graph
    assert not [node for node in graph.node if node.op_type == 'BatchNormalization']
    assert 'batch_norm' not in torch.export.load(tmp_path / 'a.pt2').graph_module.code
    for suffix in ('.onnx', '.pt2'):
        check_equal(tmp_path / f'a{suffix}', load(), (1, 64, 96), NAMES)


def test_report_and_metadata_tell_all_that_an_application_needs(dynamic):
    lines = [line for line in dynamic[1].splitlines() if line.startswith('ONNX,')]
    assert len(lines) == 6
    assert len({line.split(':')[0] for line in lines}) == 2
    info = metadata_of(dynamic[0])
    assert info['classes'][:3] == ['sky', 'building', 'pole']
    assert info['palette'][1] == [128, 0, 0]
    assert (info['outputs'], info['chosen_output']) == (NAMES, 'ensemble')
    assert info['resize'] == dict(scale=[96, 64], keep_ratio=True)
    assert info['padding'] == [127.5] * 3
    assert info['config'] == 'mini_resized'


def test_fixed_size_and_chosen_outputs(fixed, export, load):
    assert session_of(fixed).get_inputs()[0].shape == [1, 3, 64, 80]
    check_equal(fixed, load(), (1, 64, 80), ['top', 'ensemble'])
    assert 'exists; name another place, or add --force' in export(fixed, code=1)


def test_a_mismatch_leaves_no_file(export, tmp_path, monkeypatch):
    runner = export_module.onnx_runner

    def wrong_at_another_size(file, outputs):
        run = runner(file, outputs)
        return lambda image: [
            logits + (0.01 * abs(logits).max() if image.shape[2] != 64 else 0)
            for logits in run(image)
        ]

    monkeypatch.setattr(export_module, 'onnx_runner', wrong_at_another_size)
    message = export(tmp_path / 'a.onnx', '--dynamic --size 64x64', code=1)
    assert 'x 49 x 83: top differs from PyTorch by' in message
    assert 'nothing was written' in message
    assert list(tmp_path.iterdir()) == []


def test_single_output_model(export, load, untrained, tmp_path):
    model = dict(config=DPANET, checkpoint=untrained(DPANET, tmp_path / 'dpanet.pth'))
    export(tmp_path / 'dpanet.onnx', '--dynamic --size 64x48', **model)
    check_equal(tmp_path / 'dpanet.onnx', load(**model), (1, 70, 41), ['prediction'])


@pytest.mark.slow
@needs_programs
def test_program_of_networks_that_cooperate(export, load, tmp_path):
    export(tmp_path / 'a.onnx', '--dynamic --size 64x96 --program')
    check_equal(tmp_path / 'a.pt2', load(), (1, 50, 77), NAMES)


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
def test_smallest_size_of_a_program_is_the_one_it_takes(export, load, untrained, tmp_path):
    model = dict(
        config=MINI,
        checkpoint=untrained(MINI, tmp_path / 'a.pth', STRIDE_32),
        options=STRIDE_32,
    )
    lines = export(tmp_path / 'a.onnx', '--dynamic --program --size 64x96', **model).splitlines()
    assert 'torch.export takes images of 33 x 33 or more' in lines
    assert len([line for line in lines if '1 x 3 x 33 x 33: ' in line]) == len(NAMES)
    check_equal(tmp_path / 'a.pt2', load(**model), (1, 33, 50), NAMES)
    program = torch.export.load(tmp_path / 'a.pt2').module()
    with pytest.raises(AssertionError, match='>= 33'):
        program(torch.from_numpy(rgb_batch(1, 32, 50)))
    words = '--dynamic --program --size 32x32 --force'
    message = export(tmp_path / 'a.onnx', words, code=1, **model)
    assert 'torch.export frees the sides up to' in message
    assert 'give a greater --size' in message


@pytest.mark.slow
@pytest.mark.parametrize('option', ['', '--dynamic --optimize'])
def test_dynamo_exporter(export, load, tmp_path, option):
    pytest.importorskip('onnxscript', reason='the exporter needs onnxscript')
    if 'external_data' not in inspect.signature(torch.onnx.export).parameters:
        pytest.skip('this torch has no such exporter')
    export(tmp_path / 'a.onnx', f'--size 64x64 --exporter dynamo {option}')
    check_equal(tmp_path / 'a.onnx', load(), (1, *((51, 90) if option else (64, 64))), NAMES)


@pytest.mark.parametrize(
    ('out', 'text', 'code', 'message'),
    [
        ('a.onnx', '--outputs left', 1, "output 'left' is unknown; the model has ['top', "),
        ('a.onnx', '--size 64', 2, "takes HEIGHTxWIDTH such as 513x513, not '64'"),
        ('a.onnx', '--size 8x64', 1, '--size takes sides of at least 32, not 8x64'),
        ('model.pb', '', 1, "--out 'model.pb' has to end in .onnx"),
        ('a.onnx', '--opset 99', 1, '--opset 99: the trace exporter writes 11 to '),
    ],
)
def test_export_refuses_wrong_arguments(export, out, text, code, message):
    assert message in export(out, text, code=code)


# onnx_inference.py


@pytest.fixture(scope='module')
def infer(run_tool):
    """Run onnx_inference.py with its options in one text."""

    def call(model, images, out, text='', **code):
        words = (model, images, '--out', out, *text.split())
        return run_tool('tools/deployment/onnx_inference.py', *words, **code)

    return call


def label_map(folder, output, name):
    return cv2.imread(str(folder / f'{output}/{name}.png'), cv2.IMREAD_UNCHANGED)


def check_label_maps(folder, model, work, outputs=NAMES, names=SIZES):
    """Hold what onnx_inference.py has written to what mmseg predicts."""
    for name in names:
        image = cv2.imread(str(work / f'images/{name}.png'))
        expected = inference_model(model, image).pred_outputs
        for output in outputs:
            label = label_map(folder, output, name)
            assert label.shape == image.shape[:2]
            assert len(np.unique(label)) > 1
            assert (label == expected.get(output)[0].numpy()).mean() > 0.999


#: Runs a script where nothing but numpy, OpenCV and onnxruntime can be imported.
BARE = """
import runpy, sys
for name in ('torch', 'mmcv', 'mmengine', 'mmseg', 'mmseg_coop', 'mmseg_coop_cli', 'onnx', 'PIL'):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_inference_without_torch_equals_mmseg(dynamic, work, load, infer, tmp_path):
    words = (ROOT / 'tools/deployment/onnx_inference.py', dynamic[0], work / 'images')
    done = subprocess.run(
        [sys.executable, '-c', BARE, *words, '--out', tmp_path, '--labels'],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '3 images, outputs top, bottom, ensemble' in done.stdout
    check_label_maps(tmp_path, load(), work)
    for name, (height, width) in SIZES.items():  # four panels and a legend below
        drawn = cv2.imread(str(tmp_path / f'{name}.png'))
        scale = -(-240 // height)
        assert drawn.shape[1] == 4 * scale * width + 3 * 4
        assert drawn.shape[0] > scale * height + 22 + 22
    again = infer(dynamic[0], work / 'images', tmp_path, code=1)
    assert 'exists; choose another --out, or --force' in again


def test_inference_fits_images_into_a_fixed_graph(fixed, infer, work, load, tmp_path):
    infer(fixed, work / 'images/wide.png', tmp_path, '--labels')
    image = cv2.imread(str(work / 'images/wide.png'))  # 50 x 120, hence 33 x 80 in the graph
    rgb = np.full((1, 3, 64, 80), 127.5, np.float32)
    rgb[0, :, :33] = cv2.resize(image, (80, 33))[..., ::-1].transpose(2, 0, 1)
    logits = torch.from_numpy(pytorch(load(), rgb)['top'])[..., :33, :]
    logits = torch.nn.functional.interpolate(logits, size=(50, 120), mode='bilinear')
    label = label_map(tmp_path, 'top', 'wide')
    assert (label == logits[0].argmax(0).numpy()).mean() > 0.999


@pytest.mark.parametrize(
    ('text', 'shape', 'names', 'preprocessor', 'padding'),
    [
        # networks that take BGR; the padding is RGB as all of the interface
        (
            '--dynamic --size 64x64',
            (1, 64, 64),
            SIZES,
            dict(bgr_to_rgb=False, mean=[100.0, 120.0, 140.0]),
            [140, 120, 100],
        ),
        # wide is less than 48 high
        ('--size 48x40', (1, 48, 40), ('tall', 'square'), {}, [127.5] * 3),
    ],
    ids=['dynamic', 'fixed'],
)
def test_inference_with_a_sliding_window(
    export, infer, work, load, tmp_path, text, shape, names, preprocessor, padding
):
    test_cfg = dict(mode='slide', crop_size=(48, 40), stride=(20, 32))
    options = {f'model.test_cfg.{key}': value for key, value in test_cfg.items()}
    options |= {f'model.data_preprocessor.{key}': value for key, value in preprocessor.items()}
    export(tmp_path / 'a.onnx', text, options=options)
    assert metadata_of(tmp_path / 'a.onnx')['padding'] == padding
    check_equal(tmp_path / 'a.onnx', load(options), shape, NAMES)
    infer(tmp_path / 'a.onnx', work / 'images', tmp_path, '--labels')
    check_label_maps(tmp_path, load(options), work, names=names)


def test_inference_with_a_binary_model(export, infer, work, load, untrained, tmp_path):
    head = 'model.decode_head'
    options = {
        f'{head}.num_classes': 2,
        f'{head}.out_channels': 1,
        f'{head}.loss_decode.use_sigmoid': True,
    }
    checkpoint = untrained(work / 'mini_resized.py', tmp_path / 'binary.pth', options)
    model = load(options, checkpoint=checkpoint)
    # a threshold that parts the pixels of untrained weights
    threshold = float(np.median(1 / (1 + np.exp(-pytorch(model, rgb_batch(1, 64, 64))['bottom']))))
    model.decode_head.threshold = options[f'{head}.threshold'] = threshold
    onnx = tmp_path / 'binary.onnx'
    export(onnx, '--dynamic --size 64x64', checkpoint=checkpoint, options=options)
    infer(onnx, work / 'images', tmp_path, '--labels --outputs bottom')
    found = [label_map(tmp_path, 'bottom', name) for name in SIZES]
    for name, label in zip(SIZES, found, strict=True):
        image = cv2.imread(str(work / f'images/{name}.png'))
        expected = inference_model(model, image).pred_outputs.get('bottom')[0].numpy()
        assert (label == expected).mean() > 0.999
    assert set(np.concatenate([label.ravel() for label in found])) == {0, 1}


@pytest.mark.parametrize(
    ('model', 'images', 'text', 'code', 'message'),
    [
        ('dynamic.onnx', 'gone.png', '', 1, "gone.png' does not exist"),
        ('dynamic.onnx', 'images', '--outputs left', 1, "output 'left' is unknown"),
        ('dynamic.onnx', 'images', '--providers Abacus', 1, "'Abacus' is not available"),
        ('dynamic.onnx', 'images', '--opacity 2', 2, '--opacity takes 0 to 1, not 2.0'),
        ('mini_resized.py', 'images', '', 1, 'cannot be loaded'),
        ('dynamic.onnx', 'mini_resized.py', '', 1, 'is not an image that OpenCV reads'),
    ],
)
def test_inference_refuses_wrong_arguments(
    dynamic, infer, work, tmp_path, model, images, text, code, message
):
    assert message in infer(work / model, work / images, tmp_path / 'x', text, code=code)
