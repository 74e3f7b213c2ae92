"""tools/train.py and tools/test.py: a run from the first iteration to the label maps of a test."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import inference_model
from mmseg.datasets import PascalVOCDataset
from PIL import Image

from mmseg_coop.apis import load_model
from tests.conftest import MINI, ROOT

CITYSCAPES = ROOT / 'configs/dpanet/dpanet_r101-d8_1xb8-112k_cityscapes-768x768.py'
NAMES = ('top', 'bottom', 'ensemble')


@pytest.fixture
def run(run_tool, mini_data, run_options, tmp_path):
    """Run a tool in a folder that is not the project's; it writes into ``work`` there."""

    def call(name, *words, config=MINI, data=None, options=(), code=0):
        words = ('--work-dir', 'work', *words, *run_options(data or mini_data(), *options))
        return run_tool(f'tools/{name}.py', config, *words, cwd=tmp_path, code=code)

    return call


def metrics_in(folder):
    (file,) = folder.glob('*/*.json')
    return json.loads(file.read_text())


def test_training_says_how_it_goes(trained):
    lines = [line for line in trained[1].splitlines() if line.startswith('train ')]
    assert len(lines) == 4
    for line in lines:
        assert re.fullmatch(r'train +\d/4  loss \d\S*  lr \d\S*  0:00:\d\d left', line)


def test_the_best_and_the_newest_two_checkpoints_are_kept(trained):
    names = sorted(file.name for file in trained[0].glob('*.pth'))
    assert re.fullmatch(r'best_mIoU_iter_\d.pth iter_3.pth iter_4.pth', ' '.join(names))


def test_every_evaluation_is_recorded_with_all_classes(trained):
    lines = (trained[0] / 'iou.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record['iteration'] for record in records] == [2, 4]
    for record in records:
        assert (record['split'], record['config']) == ('val', MINI.stem)
        assert record['output'] == 'ensemble'
        assert list(record['outputs']) == list(NAMES)
        for output in record['outputs'].values():
            values = [value for value in output['IoU'] if value is not None]
            assert len(output['IoU']) == len(record['classes']) == 11
            assert output['mIoU'] == pytest.approx(sum(values) / len(values), abs=0.01)


def test_resuming_from_the_latest_checkpoint(trained, run, tmp_path):
    shutil.copytree(trained[0], tmp_path / 'work')
    printed = run('train', '--resume', '--no-validate', options=['train_cfg.max_iters=5'])
    assert re.findall(r'^train +(\d)/5 ', printed, re.MULTILINE) == ['5']
    assert 'evaluation' not in printed


def test_training_with_the_options_for_speed(run, tmp_path):
    run('train', '--amp', '--channels-last', '--no-validate')
    cfg = Config.fromfile(next(tmp_path.glob('work/*/vis_data/config.py')))
    on_cpu = not torch.cuda.is_available()
    assert cfg.optim_wrapper.type == ('BFloat16OptimWrapper' if on_cpu else 'AmpOptimWrapper')
    assert cfg.custom_hooks[-1] == dict(type='ChannelsLastHook')


def test_testing_reports_draws_and_writes_every_output(untrained_mini, run, mini_data, tmp_path):
    gone = [f'{split}_dataloader.dataset.data_root=gone' for split in ('train', 'val')]
    words = ('--output', 'all', '--out', 'out', '--show-dir', 'show')
    run('test', untrained_mini, *words, options=gone)
    metrics = metrics_in(tmp_path / 'work')
    assert {f'{name}/mIoU' for name in NAMES} <= set(metrics)
    assert metrics['mIoU'] == metrics['ensemble/mIoU']
    record = json.loads((tmp_path / 'work/iou.jsonl').read_text())
    assert (record['split'], record['iteration']) == ('test', None)
    frames = sorted(file.stem for file in (mini_data() / 'img_dir/test').iterdir())
    for name in NAMES:
        written = sorted((tmp_path / 'out' / name).iterdir())
        assert [file.stem for file in written] == frames
        label_map = np.array(Image.open(written[0]))
        assert label_map.shape == (64, 64)
        assert label_map.max() < 11
    assert len(list((tmp_path / 'show').rglob('*.png'))) == len(frames)


def test_tta_reports_every_output_and_the_chosen_one_first(untrained_mini, run, tmp_path):
    printed = run('test', untrained_mini, '--tta', '--output', 'top', '--optimize')
    assert re.search('^optimized +.* batch norms folded', printed, re.MULTILINE)
    metrics = metrics_in(tmp_path / 'work')
    assert {f'{name}/mIoU' for name in NAMES} <= set(metrics)
    assert metrics['mIoU'] == metrics['top/mIoU']


def test_optimized_tests_give_the_label_maps_of_the_plain_one(untrained_mini, run, tmp_path):
    said, maps = [], []
    for number, text in enumerate(['', '--optimize', '--dtype bfloat16']):
        out = tmp_path / str(number)
        printed = run('test', untrained_mini, '--output', 'all', '--out', out, *text.split())
        said.append(re.findall('^optimized +(.*)', printed, re.MULTILINE))
        maps.append(np.stack([np.array(Image.open(file)) for file in sorted(out.rglob('*.png'))]))
    done = r'(\d+) of \1 batch norms folded, channels last, \1 convolutions prepared'
    assert re.fullmatch(done, ''.join(said[1]))
    assert (said[0], said[2]) == ([], ['bfloat16'])
    assert len(np.unique(maps[0])) > 1
    assert (maps[1] == maps[0]).mean() > 0.9999
    assert 0.98 < (maps[2] == maps[0]).mean() < 1  # of random weights; trained ones hold more


@pytest.mark.parametrize(
    ('words', 'code', 'message'),
    [
        ('train --resume gone.pth', 1, "error: checkpoint 'gone.pth' does not exist"),
        ('test gone.pth', 1, "error: checkpoint 'gone.pth' does not exist"),
        ('test CHECKPOINT --output left', 1, r"output='left' is unknown; .* \['top', 'bottom', "),
        ('test CHECKPOINT --palette', 2, '--palette is about the label maps that --out DIR writes'),
        pytest.param(
            *('train --amp float16', 1, 'error: --amp float16 needs an accelerator; on the CPU '),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU'),
        ),
    ],
)
def test_wrong_input_ends_in_one_line(run, untrained_mini, words, code, message):
    words = words.replace('CHECKPOINT', str(untrained_mini)).split()
    assert re.search(message, run(*words, code=code))


@pytest.mark.parametrize('script', sorted(ROOT.glob('tools/*.sh')), ids=lambda path: path.name)
def test_shell_scripts_say_how_they_are_used(script):
    done = subprocess.run(['bash', script], text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith('usage: ')


@pytest.mark.parametrize(
    ('script', 'words', 'expected'),
    [
        ('dist_train', 'cfg.py 2 --amp', 'train.py cfg.py --launcher pytorch --amp'),
        ('dist_test', 'cfg.py a.pth 2', 'test.py cfg.py a.pth --launcher pytorch'),
        ('slurm_train', 'gpu job cfg.py', 'train.py cfg.py --launcher slurm'),
        ('slurm_test', 'gpu job cfg.py a.pth --tta', 'test.py cfg.py a.pth --launcher slurm --tta'),
    ],
)
def test_shell_scripts_start_the_tool(script, words, expected, tmp_path):
    for launcher in ('torchrun', 'srun'):
        stand_in = tmp_path / launcher
        stand_in.write_text('#!/bin/sh\necho "$0" "$@"\n')
        stand_in.chmod(0o755)
    done = subprocess.run(
        ['bash', ROOT / f'tools/{script}.sh', *words.split()],
        env={**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'GPUS': '2'},
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.strip().endswith(expected)
    processes = '--nproc_per_node=2' if 'dist' in script else '--ntasks=2'
    assert processes in done.stdout


# Label maps: what --out writes, and what happens to images that have no labels

#: Sizes (height, width) of the images.
SIZES = dict(wide=(40, 60), tall=(66, 50))


def write_images(folder):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((width, height)).save(folder / f'{name}.jpg')


def predictions(config, checkpoint, folder):
    """Label maps of every output and image, as mmseg's inferencer gives them."""
    model = load_model(Config.fromfile(config), str(checkpoint))
    samples = {name: inference_model(model, str(folder / f'{name}.jpg')) for name in SIZES}
    return {
        output: {name: s.pred_outputs.get(output)[0].numpy() for name, s in samples.items()}
        for output in NAMES
    }


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Images with labels in the layout of CamVid."""
    root = tmp_path_factory.mktemp('label_maps')
    write_images(root / 'img_dir/val')
    (root / 'ann_dir/val').mkdir(parents=True)
    random = np.random.default_rng(1)
    for name, size in SIZES.items():
        label = random.integers(0, 11, size, dtype=np.uint8)
        Image.fromarray(label).save(root / f'ann_dir/val/{name}.png')
    return root


@pytest.fixture(scope='module')
def expected(data, untrained_mini):
    return predictions(MINI, untrained_mini, data / 'img_dir/val')


@pytest.fixture
def call(run, untrained_mini):
    """Run tools/test.py on a config and data."""

    def call(config, data, *words, checkpoint=untrained_mini, **more):
        return run('test', checkpoint, *words, config=config, data=data, **more)

    return call


@pytest.fixture
def write_config(tmp_path):
    """Write a config that inherits from the miniature one."""

    def write(text):
        file = tmp_path / 'config.py'
        file.write_text(f'_base_ = {str(MINI)!r}\n{text}')
        return file

    return write


def check_maps(folder, expected):
    assert sorted(file.name for file in folder.iterdir()) == ['tall.png', 'wide.png']
    for name, size in SIZES.items():
        label_map = np.array(Image.open(folder / f'{name}.png'))
        assert label_map.shape == size
        assert len(np.unique(label_map)) > 1
        assert (label_map == expected[name]).mean() > 0.999


def pipeline_of(*steps):
    return (
        f'steps = {[dict(type="LoadImageFromFile"), *steps, dict(type="PackSegInputs")]}\n'
        'test_dataloader = dict(dataset=dict(pipeline=steps))\n'
    )


@pytest.fixture(params=['no label folder', 'labels of other images', 'pipeline without labels'])
def unlabelled(request, data, write_config, tmp_path):
    """A config and data without labels, and why nothing can be measured."""
    if request.param == 'pipeline without labels':
        return write_config(pipeline_of()), data, 'its pipeline loads no labels (LoadAnnotations)'
    root = shutil.copytree(data, tmp_path / 'data')
    if request.param == 'no label folder':
        shutil.rmtree(root / 'ann_dir')
        return MINI, root, 'data_prefix.seg_map_path names no folder'
    for file in list(root.glob('ann_dir/val/*')):
        file.rename(file.with_stem(f'other_{file.stem}'))
    return MINI, root, f'such as {root}/ann_dir/val/tall.png'


def test_images_without_labels_are_predicted(call, unlabelled, expected, tmp_path):
    config, data_root, reason = unlabelled
    printed = call(config, data_root, '--output', 'all', '--out', tmp_path / 'maps')
    assert f'{reason}.' in printed
    assert not (tmp_path / 'work/iou.jsonl').exists()
    for name in NAMES:
        check_maps(tmp_path / 'maps' / name, expected[name])
    if 'names no folder' not in reason:  # that is said before
        message = call(config, data_root, code=1)
        assert message.startswith('error: the test split cannot be measured: ')
        assert reason in message
        assert message.endswith('or give --out DIR to write label maps only.')


def test_test_time_augmentation_without_labels(call, data, tmp_path):
    shutil.copytree(data / 'img_dir', tmp_path / 'data/img_dir')
    printed = call(MINI, tmp_path / 'data', '--tta', '--out', tmp_path / 'maps')
    assert 'nothing is measured' in printed
    assert sorted(file.name for file in (tmp_path / 'maps').iterdir()) == ['tall.png', 'wide.png']


def test_label_maps_are_whole_where_the_evaluation_crops(
    call, data, expected, write_config, tmp_path
):
    crop = dict(type='EvalCenterCrop', crop_size=(32, 32))
    config = write_config(pipeline_of(dict(type='LoadAnnotations'), crop))
    printed = call(config, data, '--out', tmp_path / 'maps')
    assert 'nothing is measured: the evaluation crops (EvalCenterCrop)' in printed
    assert not (tmp_path / 'work/iou.jsonl').exists()
    check_maps(tmp_path / 'maps', expected['ensemble'])
    call(config, data, '--work-dir', tmp_path / 'measured')
    assert 'ensemble/mIoU' in metrics_in(tmp_path / 'measured')
    assert (tmp_path / 'measured/iou.jsonl').exists()


@pytest.mark.parametrize('output', ['top', 'all'])
def test_several_evaluators_and_one_writes(call, data, expected, write_config, tmp_path, output):
    config = write_config(
        "test_evaluator = [dict(type='IoUMetric', prefix='plain'), "
        "dict(type='CoopIoUMetric', prefix='coop')]\n"
    )
    out = tmp_path / 'maps'
    call(config, data, '--output', output, '--out', out, '--palette')
    assert {'plain/mIoU', 'coop/ensemble/mIoU'} <= set(metrics_in(tmp_path / 'work'))
    for name in NAMES if output == 'all' else ['top']:
        check_maps(out / name if output == 'all' else out, expected[name])


def test_evaluators_that_write_no_label_maps_or_nothing_else(
    call, data, expected, write_config, tmp_path
):
    config = write_config(
        "dump = dict(type='DumpResults', out_file_path='results.pkl')\n"
        "test_evaluator = dict(_delete_=True, type='Evaluator', metrics=[dump])\n"
    )
    call(config, data, '--out', tmp_path / 'maps')
    check_maps(tmp_path / 'maps', expected['ensemble'])
    assert (tmp_path / 'results.pkl').is_file()
    config = write_config(pipeline_of())
    options = ['test_evaluator.format_only=True', f'test_evaluator.output_dir={tmp_path / "only"}']
    assert 'its pipeline loads no labels (LoadAnnotations).' in call(config, data, options=options)
    check_maps(tmp_path / 'only', expected['ensemble'])


def test_label_maps_are_not_replaced_without_force(call, data, tmp_path):
    (tmp_path / 'maps').mkdir()
    (tmp_path / 'maps/mine.png').write_text('mine')
    words = (MINI, data, '--out', tmp_path / 'maps')
    assert 'mine.png' in call(*words, code=1).splitlines()[-1]
    assert [file.name for file in (tmp_path / 'maps').iterdir()] == ['mine.png']
    call(*words, '--force')
    assert len(list((tmp_path / 'maps').iterdir())) > 1


def test_submission_to_the_evaluation_server_of_voc(call, untrained, tmp_path):
    """The documented command, with a small network, on the folders that the server gives."""
    page = (ROOT / 'docs/testing.md').read_text().partition("## VOC's evaluation server\n")[2]
    command = page.partition('```bash\n')[2].partition('\n```')[0].replace('\\\n', ' ')
    python, path, config, checkpoint, *words = shlex.split(command.splitlines()[0])
    assert (python, path, checkpoint) == ('python', 'tools/test.py', 'CHECKPOINT')
    cfg = Config.fromfile(ROOT / config)
    cfg.model = Config.fromfile(MINI).model
    cfg.model.decode_head.num_classes = 21
    cfg.train_dataloader = cfg.test_dataloader  # the real one has more than one data root
    cfg.dump(tmp_path / 'config.py')
    checkpoint = untrained(cfg, tmp_path / 'model.pth')
    voc = tmp_path / 'VOCdevkit/VOC2012'
    write_images(voc / 'JPEGImages')
    (voc / 'ImageSets/Segmentation').mkdir(parents=True)
    (voc / 'ImageSets/Segmentation/test.txt').write_text('tall\nwide\n')
    at = words.index('--cfg-options')
    options = dict(checkpoint=checkpoint, options=words[at + 1 :])
    printed = call('config.py', voc, *words[:at], **options)
    assert 'nothing is measured: none of its images has a label' in printed
    folder = tmp_path / 'results/VOC2012/Segmentation/comp6_test_cls'
    maps = predictions(tmp_path / 'config.py', checkpoint, voc / 'JPEGImages')
    check_maps(folder, maps['ensemble'])
    for file in folder.iterdir():
        with Image.open(file) as image:
            assert image.mode == 'P'
            colors = np.array(image.getpalette()).reshape(-1, 3)[:21].tolist()
        # the first classes of the devkit's colour map: background, aeroplane, bicycle, bird
        assert colors[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
        assert colors == [list(color) for color in PascalVOCDataset.METAINFO['palette']]


def test_label_ids_for_the_test_server_of_cityscapes(call, mini_data, untrained, tmp_path):
    """The command of docs/testing.md, on a small network and the split at hand."""
    pytest.importorskip(
        'cityscapesscripts', reason='mmseg takes the label ids from cityscapesscripts'
    )
    network = {'model.backbone.depth': 18, 'model.decode_head.in_channels': 512}
    data_prefix = 'test_dataloader.dataset.data_prefix'
    options = [
        *(f'{key}={value}' for key, value in network.items()),
        f'{data_prefix}.img_path=leftImg8bit/val',
        f'{data_prefix}.seg_map_path=gtFine/val',
        *('test_evaluator.type=CityscapesMetric', 'test_evaluator.format_only=True'),
        *('test_evaluator.keep_results=True', 'test_evaluator.output_dir=submission'),
        'test_pipeline.1.scale=(128,64)',
        'test_dataloader.dataset.pipeline.1.scale=(128,64)',
    ]
    checkpoint = untrained(CITYSCAPES, tmp_path / 'model.pth', network)
    data = mini_data('cityscapes', train=1, val=2, size='64x128')
    call(CITYSCAPES, data, checkpoint=checkpoint, options=options)
    written = sorted((tmp_path / 'submission').glob('*.png'))
    assert len(written) == 2
    # Ids of the 19 classes that are evaluated, from the dataset's description.
    ids = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    for file in written:
        label_map = np.array(Image.open(file))
        assert label_map.shape == (64, 128)
        assert set(np.unique(label_map)) <= ids
