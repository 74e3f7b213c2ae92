from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
NAMES = ('top', 'bottom', 'ensemble')


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    out = tmp_path_factory.mktemp('camvid') / 'data'
    subprocess.run(
        [
            *(sys.executable, ROOT / 'tools/dataset_converters/make_mini_dataset.py'),
            *('--layout', 'camvid', '--out', out),
            *('--train', '8', '--val', '3', '--size', '64x64'),
        ],
        check=True,
        capture_output=True,
    )
    return out


def command(tool, *arguments, data_root, options=()):
    small = [
        *(
            f'{split}_dataloader.dataset.data_root={data_root}'
            for split in ('train', 'val', 'test')
        ),
        *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')),
        *(f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')),
        'train_dataloader.batch_size=2',
        'train_cfg.max_iters=4',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.logger.interval=1',
        'param_scheduler.0.end=4',
        *options,
    ]
    return [str(ROOT / 'tools' / tool), *map(str, arguments), '--cfg-options', *small]


def run(*args, cwd, **kwargs):
    """Run a tool and return what it did; it starts in another folder than the project's."""
    return subprocess.run(
        [sys.executable, *command(*args, **kwargs)], cwd=cwd, text=True, capture_output=True,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope='module')
def trained(data_root, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('train')
    done = run('train.py', CONFIG, '--work-dir', work_dir, data_root=data_root, cwd=work_dir)
    assert done.returncode == 0, done.stderr
    return work_dir, done.stdout + done.stderr


def test_training_says_how_it_goes(trained):
    lines = [line for line in trained[1].splitlines() if line.startswith('train ')]
    assert len(lines) == 4
    for line in lines:
        assert re.fullmatch(r'train +\d/4  loss \d\S*  lr \d\S*  0:00:\d\d left', line)
    assert re.search(
        r'\|\s*output\s*\|\s*sky\s*\|.*\|\s*bicyclist\s*\|\s*mean IoU\s*\|', trained[1]
    )


def test_the_best_and_the_newest_two_checkpoints_are_kept(trained):
    names = sorted(file.name for file in trained[0].glob('*.pth'))
    assert len([name for name in names if name.startswith('best_mIoU_iter_')]) == 1
    assert [name for name in names if name.startswith('iter_')] == ['iter_3.pth', 'iter_4.pth']


def test_every_evaluation_is_recorded_with_all_classes(trained):
    lines = (trained[0] / 'iou.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record['iteration'] for record in records] == [2, 4]
    for record in records:
        assert (record['split'], record['config']) == ('val', CONFIG.stem)
        assert record['output'] == 'ensemble'
        assert list(record['outputs']) == list(NAMES)
        for output in record['outputs'].values():
            values = [value for value in output['IoU'] if value is not None]
            assert len(output['IoU']) == len(record['classes']) == 11
            assert output['mIoU'] == pytest.approx(sum(values) / len(values), abs=0.01)


def test_resuming_from_a_given_checkpoint_goes_on_from_there(trained, data_root, tmp_path):
    done = run(
        'train.py', CONFIG, '--work-dir', tmp_path, '--resume', trained[0] / 'iter_3.pth',
        '--no-validate', data_root=data_root, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.findall(r'^train +(\d)/4 ', done.stdout, re.MULTILINE) == ['4']
    assert 'evaluation' not in done.stdout


def test_resuming_the_latest(trained, data_root):
    work_dir = trained[0]
    done = run(
        'train.py', CONFIG, '--work-dir', work_dir, '--resume', '--no-validate',
        data_root=data_root, cwd=work_dir, options=['train_cfg.max_iters=5'],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.findall(r'^train +(\d)/5 ', done.stdout, re.MULTILINE) == ['5']


@pytest.mark.skipif(not torch.cuda.is_available(), reason='mixed precision needs a GPU')
def test_training_with_amp(data_root, tmp_path):
    done = run(
        'train.py',
        CONFIG,
        '--work-dir',
        tmp_path,
        '--amp',
        '--no-validate',
        data_root=data_root,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    config = next(tmp_path.glob('*/vis_data/config.py')).read_text()
    assert "type='AmpOptimWrapper'" in config


def test_testing_reports_draws_and_writes_every_output(trained, data_root, tmp_path):
    checkpoint = next(trained[0].glob('best_mIoU_*.pth'))
    done = run(
        'test.py', CONFIG, checkpoint, '--work-dir', tmp_path / 'work', '--output', 'all',
        '--out', tmp_path / 'labels', '--show-dir', tmp_path / 'pictures',
        data_root=data_root, cwd=tmp_path,
        options=[f'{split}_dataloader.dataset.data_root=gone' for split in ('train', 'val')],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads(next((tmp_path / 'work').glob('*/*.json')).read_text())
    assert {f'{name}/mIoU' for name in NAMES} <= set(metrics)
    assert metrics['mIoU'] == metrics['ensemble/mIoU']
    record = json.loads((tmp_path / 'work/iou.jsonl').read_text())
    assert (record['split'], record['iteration']) == ('test', None)
    frames = sorted(file.stem for file in (data_root / 'img_dir/test').iterdir())
    for name in NAMES:
        written = sorted((tmp_path / 'labels' / name).iterdir())
        assert [file.stem for file in written] == frames
        label_map = mmcv.imread(str(written[0]), 'unchanged')
        assert label_map.shape == (64, 64)
        assert label_map.max() < 11
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == len(frames)


def test_tta_reports_every_output_and_the_chosen_one_first(trained, data_root, tmp_path):
    checkpoint = next(trained[0].glob('best_mIoU_*.pth'))
    done = run(
        'test.py', CONFIG, checkpoint, '--work-dir', tmp_path, '--tta', '--output', 'top',
        data_root=data_root, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads(next(tmp_path.glob('*/*.json')).read_text())
    assert {f'{name}/mIoU' for name in NAMES} <= set(metrics)
    assert metrics['mIoU'] == metrics['top/mIoU']


def test_two_processes_on_the_cpu_train_and_test_like_one(trained, data_root, tmp_path):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}

    def launch(tool, *arguments):
        words = command(tool, *arguments, '--launcher', 'pytorch', data_root=data_root)
        return subprocess.run(
            [sys.executable, '-m', 'torch.distributed.run', '--standalone',
             '--nproc_per_node=2', *words],
            cwd=tmp_path, env=environment, text=True, capture_output=True, check=False,
        )  # fmt: skip

    done = launch('train.py', CONFIG, '--work-dir', tmp_path / 'train')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'train/iter_4.pth').exists()

    checkpoint = next(trained[0].glob('best_mIoU_*.pth'))
    done = launch('test.py', CONFIG, checkpoint, '--work-dir', tmp_path / 'two')
    assert done.returncode == 0, done.stderr
    alone = run(
        'test.py', CONFIG, checkpoint, '--work-dir', tmp_path / 'one', data_root=data_root,
        cwd=tmp_path,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    results = {
        name: json.loads(next((tmp_path / name).glob('*/*.json')).read_text())
        for name in ('one', 'two')
    }
    for key in ('top/mIoU', 'bottom/mIoU', 'ensemble/mIoU', 'aAcc'):
        assert results['two'][key] == pytest.approx(results['one'][key], abs=0.011)


@pytest.mark.parametrize(
    ('tool', 'arguments', 'options', 'message'),
    [
        ('train.py', ['cross-coop_r18.py'], [], "config '.*cross-coop_r18.py' does not exist"),
        (
            'train.py',
            [str(CONFIG).replace('mini_1xb8', 'mini_2xb8')],
            [],
            f'does not exist. Did you mean {CONFIG.name}',
        ),
        ('train.py', [CONFIG, '--resume', 'gone.pth'], [], "checkpoint 'gone.pth' does not exist"),
        (
            'train.py',
            [CONFIG],
            ['train_dataloader.dataset.data_root=/nowhere'],
            "data root '/nowhere' of the train split does not exist",
        ),
        (
            'train.py',
            [CONFIG],
            ['val_dataloader.dataset.data_prefix.img_path=img_dir/vall'],
            "img_path '.*img_dir/vall' of the val split does not exist",
        ),
        (
            'train.py',
            [CONFIG],
            ['train_dataloader.dataset.img_suffix=.tiff'],
            r'no \*.tiff image in .*img_dir/train; check data_root',
        ),
        pytest.param(
            'train.py',
            [CONFIG, '--amp'],
            [],
            '--amp needs an accelerator',
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU'),
        ),
        ('test.py', [CONFIG, 'gone.pth'], [], "checkpoint 'gone.pth' does not exist"),
    ],
)
def test_wrong_input_ends_in_one_line(tool, arguments, options, message, data_root, tmp_path):
    done = run(tool, *arguments, data_root=data_root, options=options, cwd=tmp_path)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ')
    assert re.search(message, last)


def test_an_unknown_output_is_named(trained, data_root, tmp_path):
    checkpoint = next(trained[0].glob('best_mIoU_*.pth'))
    done = run('test.py', CONFIG, checkpoint, '--output', 'left', data_root=data_root, cwd=tmp_path)
    assert done.returncode != 0
    assert "output='left' is unknown; this model has the outputs ['top', 'bottom', 'ensemble']" in (
        done.stderr
    )


@pytest.mark.parametrize('script', sorted(ROOT.glob('tools/*.sh')), ids=lambda path: path.name)
def test_shell_scripts_say_how_they_are_used(script):
    done = subprocess.run(['bash', script], text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith('usage: ')


@pytest.mark.parametrize(
    ('script', 'arguments', 'expected'),
    [
        ('dist_train.sh', ['cfg.py', '2', '--amp'], 'train.py cfg.py --launcher pytorch --amp'),
        ('dist_test.sh', ['cfg.py', 'a.pth', '2'], 'test.py cfg.py a.pth --launcher pytorch'),
        ('slurm_train.sh', ['gpu', 'job', 'cfg.py'], 'train.py cfg.py --launcher slurm'),
        (
            'slurm_test.sh',
            ['gpu', 'job', 'cfg.py', 'a.pth', '--tta'],
            'test.py cfg.py a.pth --launcher slurm --tta',
        ),
    ],
)
def test_shell_scripts_start_the_tool(script, arguments, expected, tmp_path):
    for launcher in ('torchrun', 'srun'):
        stand_in = tmp_path / launcher
        stand_in.write_text('#!/bin/sh\necho "$0" "$@"\n')
        stand_in.chmod(0o755)
    done = subprocess.run(
        ['bash', ROOT / 'tools' / script, *arguments],
        env={**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'GPUS': '2'},
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.strip().endswith(expected)
    processes = '--nproc_per_node=2' if 'dist' in script else '--ntasks=2'
    assert processes in done.stdout
