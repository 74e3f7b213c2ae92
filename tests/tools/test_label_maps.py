"""What tools/test.py writes with --out, and what it does with images that have no labels."""

from __future__ import annotations

import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model
from mmseg.registry import MODELS
from PIL import Image

from mmseg_coop.apis.model import load_model

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
VOC = ROOT / 'configs/cross_coop/cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
#: Sizes (height, width) of the images.
SIZES = dict(wide=(40, 60), tall=(66, 50))
NAMES = ('top', 'bottom', 'ensemble')


def write_images(folder, suffix):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((width, height)).save(folder / f'{name}{suffix}')


def write_labels(folder, num_classes):
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for name, size in SIZES.items():
        label = random.integers(0, num_classes, size, dtype=np.uint8)
        Image.fromarray(label).save(folder / f'{name}.png')


def write_checkpoint(cfg, file):
    """Random weights whose classes differ from pixel to pixel."""
    init_default_scope('mmseg')  # fixtures of a module come before those of a test
    torch.manual_seed(1)
    model = MODELS.build(cfg.model)
    for name, parameter in model.named_parameters():
        if 'conv_seg' in name:
            torch.nn.init.normal_(parameter, std=2)
    torch.save(dict(state_dict=model.state_dict()), file)


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """Images with labels in the layout of CamVid, and a checkpoint."""
    folder = tmp_path_factory.mktemp('label_maps')
    write_images(folder / 'data/img_dir/val', '.jpg')
    write_labels(folder / 'data/ann_dir/val', 11)
    write_checkpoint(Config.fromfile(MINI), folder / 'model.pth')
    return folder


@pytest.fixture(scope='module')
def expected(work):
    """Label maps of every output and image, as mmseg's inferencer gives them."""
    model = load_model(Config.fromfile(MINI), str(work / 'model.pth'))
    samples = {
        name: inference_model(model, str(work / f'data/img_dir/val/{name}.jpg')) for name in SIZES
    }
    return {
        output: {
            name: sample.pred_outputs.get(output)[0].numpy() for name, sample in samples.items()
        }
        for output in NAMES
    }


@pytest.fixture
def call(monkeypatch, tmp_path, capfd):
    """Run tools/test.py in this process; returns what it printed, or the error it ends with."""
    monkeypatch.chdir(tmp_path)

    def call(config, checkpoint, data_root, *arguments, options=()):
        words = [
            *(ROOT / 'tools/test.py', config, checkpoint, '--work-dir', tmp_path / 'work'),
            *(*arguments, '--cfg-options', f'test_dataloader.dataset.data_root={data_root}'),
            *('test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False'),
            *options,
        ]
        monkeypatch.setattr(sys, 'argv', [str(word) for word in words])
        try:
            runpy.run_path(str(words[0]), run_name='__main__')
        except SystemExit as end:
            return end.code if end.code != 2 else capfd.readouterr().err
        return capfd.readouterr().out

    return call


def check_maps(folder, expected):
    assert sorted(file.name for file in folder.iterdir()) == ['tall.png', 'wide.png']
    for name, size in SIZES.items():
        label_map = np.array(Image.open(folder / f'{name}.png'))
        assert label_map.shape == size
        assert len(np.unique(label_map)) > 1
        assert (label_map == expected[name]).mean() > 0.999


def no_label_folder(work, tmp_path):
    shutil.copytree(work / 'data/img_dir', tmp_path / 'data/img_dir')
    return MINI, tmp_path / 'data', 'data_prefix.seg_map_path names no folder'


def labels_of_other_images(work, tmp_path):
    shutil.copytree(work / 'data', tmp_path / 'data')
    for file in list(tmp_path.glob('data/ann_dir/val/*')):
        file.rename(file.with_stem(f'other_{file.stem}'))
    return MINI, tmp_path / 'data', f'such as {tmp_path}/data/ann_dir/val/tall.png'


def pipeline_without_labels(work, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(MINI)!r}\n'
        "pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]\n"
        'test_dataloader = dict(dataset=dict(pipeline=pipeline))\n'
    )
    return config, work / 'data', 'its pipeline loads no labels (LoadAnnotations)'


@pytest.mark.parametrize('case', [no_label_folder, labels_of_other_images, pipeline_without_labels])
def test_images_without_labels_are_predicted(call, work, expected, tmp_path, case):
    config, data_root, reason = case(work, tmp_path)
    out = tmp_path / 'maps'
    printed = call(
        *(config, work / 'model.pth', data_root, '--output', 'all', '--out', out),
        options=['test_dataloader.batch_size=2'],
    )
    assert f'{reason}.' in printed
    assert not (tmp_path / 'work/iou.jsonl').exists()
    for name in NAMES:
        check_maps(out / name, expected[name])


@pytest.mark.parametrize('case', [labels_of_other_images, pipeline_without_labels])
def test_without_labels_and_out_there_is_nothing_to_do(call, work, tmp_path, case):
    config, data_root, reason = case(work, tmp_path)
    message = call(config, work / 'model.pth', data_root)
    assert message.startswith('error: the test split cannot be measured: ')
    assert reason in message
    assert message.endswith('or give --out DIR to write label maps only.')
    assert '\n' not in message


def test_test_time_augmentation_without_labels(call, work, tmp_path):
    config, data_root, _ = no_label_folder(work, tmp_path)
    out = tmp_path / 'maps'
    printed = call(config, work / 'model.pth', data_root, '--tta', '--out', out)
    assert 'nothing is measured' in printed
    assert sorted(file.name for file in out.iterdir()) == ['tall.png', 'wide.png']


def test_label_maps_are_whole_where_the_evaluation_crops(call, work, expected, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(MINI)!r}\n'
        "pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), "
        "dict(type='EvalCenterCrop', crop_size=(32, 32)), dict(type='PackSegInputs')]\n"
        'test_dataloader = dict(dataset=dict(pipeline=pipeline))\n'
    )
    out = tmp_path / 'maps'
    printed = call(config, work / 'model.pth', work / 'data', '--out', out)
    assert 'nothing is measured: the evaluation crops (EvalCenterCrop)' in printed
    assert not (tmp_path / 'work/iou.jsonl').exists()
    check_maps(out, expected['ensemble'])
    assert 'ensemble/mIoU: ' in call(config, work / 'model.pth', work / 'data')
    assert (tmp_path / 'work/iou.jsonl').exists()


@pytest.mark.parametrize('output', ['top', 'all'])
def test_several_evaluators_and_one_writes(call, work, expected, tmp_path, output):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(MINI)!r}\n'
        "plain = dict(type='IoUMetric', prefix='plain')\n"
        "test_evaluator = [plain, dict(type='CoopIoUMetric', prefix='coop')]\n"
    )
    out = tmp_path / 'maps'
    printed = call(
        config, work / 'model.pth', work / 'data', '--output', output, '--out', out, '--palette'
    )
    assert 'plain/mIoU' in printed
    assert 'coop/ensemble/mIoU' in printed
    for name in NAMES if output == 'all' else ['top']:
        check_maps(out / name if output == 'all' else out, expected[name])


def test_an_evaluator_that_writes_no_label_maps(call, work, expected, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(MINI)!r}\n'
        "dump = dict(type='DumpResults', out_file_path='results.pkl')\n"
        "test_evaluator = dict(_delete_=True, type='Evaluator', metrics=[dump])\n"
    )
    call(config, work / 'model.pth', work / 'data', '--out', tmp_path / 'maps')
    check_maps(tmp_path / 'maps', expected['ensemble'])
    assert Path('results.pkl').is_file()


def test_an_evaluator_that_only_writes_needs_no_labels(call, work, expected, tmp_path):
    config, data_root, reason = pipeline_without_labels(work, tmp_path)
    out = tmp_path / 'maps'
    options = ['test_evaluator.format_only=True', f'test_evaluator.output_dir={out}']
    assert f'{reason}.' in call(config, work / 'model.pth', data_root, options=options)
    check_maps(out, expected['ensemble'])


def test_palette_needs_out(call, work):
    message = call(MINI, work / 'model.pth', work / 'data', '--palette')
    assert '--palette is about the label maps that --out DIR writes' in message


def documented_command(page, heading):
    """The command of a section, as words behind the name of the tool."""
    section = page.read_text().partition(f'## {heading}\n')[2]
    command = section.partition('```bash\n')[2].partition('\n```')[0].replace('\\\n', ' ')
    python, tool, *words = shlex.split(command.splitlines()[0])
    assert (python, tool) == ('python', 'tools/test.py')
    return words


def test_submission_to_the_evaluation_server_of_voc(call, tmp_path, monkeypatch):
    """The documented command, with a small network, on the folders that the server gives."""
    monkeypatch.chdir(tmp_path)
    words = documented_command(ROOT / 'docs/testing.md', "VOC's evaluation server")
    assert words[:2] == [str(VOC.relative_to(ROOT)), 'CHECKPOINT']
    options = words.index('--cfg-options')
    cfg = Config.fromfile(VOC)
    cfg.model = Config.fromfile(MINI).model
    cfg.model.decode_head.num_classes = 21
    cfg.dump('config.py')
    write_checkpoint(cfg, tmp_path / 'model.pth')
    voc = tmp_path / 'VOCdevkit/VOC2012'
    write_images(voc / 'JPEGImages', '.jpg')
    (voc / 'ImageSets/Segmentation').mkdir(parents=True)
    (voc / 'ImageSets/Segmentation/test.txt').write_text('tall\nwide\n')
    printed = call('config.py', 'model.pth', voc, *words[2:options], options=words[options + 1 :])
    assert 'nothing is measured: none of its images has a label' in printed
    folder = tmp_path / 'results/VOC2012/Segmentation/comp6_test_cls'
    model = load_model(Config.fromfile('config.py'), 'model.pth')
    check_maps(
        folder,
        {
            name: inference_model(model, str(voc / f'JPEGImages/{name}.jpg'))
            .pred_outputs.ensemble[0]
            .numpy()
            for name in SIZES
        },
    )
    for file in folder.iterdir():
        with Image.open(file) as image:
            assert image.mode == 'P'
            colors = np.array(image.getpalette()).reshape(-1, 3)[:21].tolist()
        # the first classes of the devkit's colour map: background, aeroplane, bicycle, bird
        assert colors[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
        assert colors == [list(color) for color in model.dataset_meta['palette']]
