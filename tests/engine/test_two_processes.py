"""Two processes with gloo: the result of one, no hang when one dies, every image counted once."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS

from mmseg_coop.apis import build_runner
from mmseg_coop.engine import load_checkpoint_data

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
IMAGES = 7
#: What the two runs must not differ in: batch norm, which sees the batch of one process, and
#: dropout, which every process draws for itself. The mean of the loss is over all pixels: one over
#: labelled pixels weighs those of a process by how many it has.
COMPARABLE = f"""
_base_ = [{str(CONFIG)!r}]
custom_imports = dict(imports=['mmseg_coop', 'helpers'], allow_failed_imports=False)
norm = dict(_delete_=True, type='GN', num_groups=1)
model = dict(
    type='Precise',
    backbone=dict(networks=dict(top=dict(norm_cfg=norm), bottom=dict(norm_cfg=norm))),
    decode_head=dict(norm_cfg=norm, dropout_ratio=0, loss_decode=dict(avg_non_ignore=False)),
)
randomness = dict(seed=1)
"""
HELPERS = """
import os
import signal

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from mmseg.registry import HOOKS, METRICS, MODELS
from mmseg_coop.evaluation import CoopIoUMetric
from mmseg_coop.models import CrossCoopEncoderDecoder


@MODELS.register_module()
class Precise(CrossCoopEncoderDecoder):
    def __init__(self, *, double=False, **kwargs):
        super().__init__(**kwargs)
        if double:
            self.double()


@HOOKS.register_module()
class Fail(Hook):
    def __init__(self, rank, moment, number):
        self.rank, self.moment, self.number = rank, moment, number

    def _fail(self, moment):
        if get_rank() == self.rank and moment == self.moment:
            os.kill(os.getpid(), self.number)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 3:
            self._fail('training')

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 1:
            self._fail('evaluation')


@MODELS.register_module()
class Brightness(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))  # without any it is not wrapped

    def forward(self, inputs, data_samples, mode):
        for image, sample in zip(inputs, data_samples):
            sample.pred_sem_seg = PixelData(data=image.long().sum(0, keepdim=True) % 11)
        return data_samples


@METRICS.register_module()
class Areas(CoopIoUMetric):
    def compute_metrics(self, results):
        areas = zip(*(result[''] for result in results))
        return dict(images=len(results), areas=[sum(area).tolist() for area in areas])
"""
COUNT = """
import json
import sys

import helpers
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.runner import TestLoop
from mmseg_coop.apis import build_runner

folder, data, launcher = sys.argv[1:]
load = [dict(type=name) for name in ('LoadSegImage', 'LoadSegAnnotations', 'PackSegInputs')]
runner = build_runner(Config(dict(
    model=dict(type='Brightness'), work_dir=folder, launcher=launcher, default_scope='mmseg',
)))
runner.call_hook('before_run')
counted = {}
for images in (3, 5, 7):
    for batch in (1, 2):
        dataset = dict(
            type='CamVidDataset', data_root=data, indices=images, pipeline=load,
            data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        )
        sampler = dict(type='DefaultSampler', shuffle=False)
        loop = TestLoop(
            runner, dict(batch_size=batch, num_workers=0, dataset=dataset, sampler=sampler),
            dict(type='Areas', iou_metrics=['mIoU']),
        )
        runner._test_loop = loop  # where the hooks look for it
        seen = sum(len(indices) for indices in loop.dataloader.batch_sampler)
        counted[f'{images} images in batches of {batch}'] = dict(loop.run(), seen=seen)
with open(f'{folder}/rank{get_rank()}.json', 'w') as file:
    json.dump(counted, file)
"""
FAILING = f"""
_base_ = [{str(CONFIG)!r}]
custom_imports = dict(imports=['mmseg_coop', 'helpers'], allow_failed_imports=False)
"""


@pytest.fixture(scope='module')
def helpers(tmp_path_factory):
    """Folder with the module `helpers`, a script and two configs."""
    folder = tmp_path_factory.mktemp('helpers')
    (folder / 'helpers.py').write_text(HELPERS)
    (folder / 'count.py').write_text(COUNT)
    (folder / 'comparable.py').write_text(COMPARABLE)
    (folder / 'failing.py').write_text(FAILING)
    return folder


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    out = tmp_path_factory.mktemp('camvid') / 'data'
    subprocess.run(
        [
            *(sys.executable, ROOT / 'tools/dataset_converters/make_mini_dataset.py'),
            *('--layout', 'camvid', '--out', out),
            *('--train', '8', '--val', str(IMAGES), '--size', '64x64'),
        ],
        check=True,
        capture_output=True,
    )
    return out


def options(data_root, *more, workers=0):
    splits = ('train', 'val', 'test')
    return [
        '--cfg-options',
        *(f'{split}_dataloader.dataset.data_root={data_root}' for split in splits),
        *(f'{split}_dataloader.num_workers={workers}' for split in splits),
        *(f'{split}_dataloader.persistent_workers={workers > 0}' for split in splits),
        # They are as many as those of the validation, and need not be drawn.
        *(f'test_dataloader.dataset.data_prefix.{key}_path={value}/val' for key, value in (
            ('img', 'img_dir'), ('seg_map', 'ann_dir'),
        )),
        'default_hooks.logger.interval=1',
        *more,
    ]  # fmt: skip


def environment(helpers, **variables):
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')
    }
    path = os.pathsep.join([str(helpers), str(ROOT), os.environ.get('PYTHONPATH', '')])
    return {
        **kept, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', **variables
    }  # fmt: skip


def alone(*words, helpers, cwd):
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment(helpers), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def torchrun(*words):
    return '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *words


class ByHand:
    """Two processes that nobody watches; each writes to a file."""

    def __init__(self, *words, helpers, cwd):
        # As torchrun does: where the processes meet is open before they start, so that its port
        # cannot be taken meanwhile.
        self.store = torch.distributed.TCPStore(
            '127.0.0.1', 0, is_master=True, wait_for_workers=False
        )
        self.logs = [cwd / f'log{rank}' for rank in range(2)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            variables = dict(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                MASTER_PORT=str(self.store.port), TORCHELASTIC_USE_AGENT_STORE='True',
                TORCHELASTIC_RESTART_COUNT='0',
            )  # fmt: skip
            with log.open('w') as file:
                process = subprocess.Popen(
                    [sys.executable, *map(str, words)], cwd=cwd,
                    env=environment(helpers, **variables), stdout=file, stderr=subprocess.STDOUT,
                )  # fmt: skip
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def log(self, rank):
        return self.logs[rank].read_text()


def train(
    work_dir, *more, helpers, data_root, batch, processes=1, iterations=4, double=True, accumulate=1
):
    words = [
        ROOT / 'tools/train.py', helpers / 'comparable.py', '--work-dir', work_dir, *more,
        *(['--launcher', 'pytorch'] if processes == 2 else []),
        *options(
            data_root, f'train_dataloader.batch_size={batch}', f'train_cfg.max_iters={iterations}',
            'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=1',
            'default_hooks.checkpoint.max_keep_ckpts=-1', f'model.double={double}',
            f'optim_wrapper.accumulative_counts={accumulate}',
        ),
    ]  # fmt: skip
    log = alone(*(torchrun(*words) if processes == 2 else words), helpers=helpers, cwd=work_dir)
    return re.findall(r'Iter\(train\) \[(\d)/\d\].* loss: (\S+)', log)


def weights(work_dir, iteration):
    return load_checkpoint_data(work_dir / f'iter_{iteration}.pth', 'cpu')['state_dict']


def difference(left, right):
    assert set(left) == set(right)
    return max((left[key].double() - right[key].double()).abs().max().item() for key in left)


@pytest.mark.slow
def test_in_single_precision_they_differ_by_rounding(helpers, data_root, tmp_path):
    """Over two iterations: the errors grow through ReLUs and normalisation."""
    common = dict(helpers=helpers, data_root=data_root, iterations=2, double=False)
    folders = tmp_path / 'one', tmp_path / 'two'
    for folder in folders:
        folder.mkdir()
    train(folders[0], batch=4, **common)
    train(folders[1], batch=2, processes=2, **common)
    expected = weights(folders[0], 2)
    assert difference(expected, weights(folders[0], 1)) > 1e-3
    assert difference(expected, weights(folders[1], 2)) < 10 * torch.finfo(torch.float32).eps


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_doubled_batch(helpers, data_root, tmp_path):
    """In double precision, where rounding hides nothing."""
    folders = {name: tmp_path / name for name in ('one', 'two', 'half', 'resumed')}
    for folder in folders.values():
        folder.mkdir()
    common = dict(helpers=helpers, data_root=data_root)
    one = train(folders['one'], batch=4, **common)
    two = train(folders['two'], batch=2, processes=2, **common)
    train(folders['half'], batch=2, **common)
    expected = weights(folders['one'], 4)
    assert difference(expected, weights(folders['one'], 3)) > 1e-3
    assert difference(expected, weights(folders['two'], 4)) < 1e-10
    assert difference(expected, weights(folders['half'], 4)) > 1e-3

    # The log has the losses of the first process, on its half of the batch.
    assert [line[0] for line in one] == [line[0] for line in two] == ['1', '2', '3', '4']
    assert all(a[1] != b[1] for a, b in zip(one, two, strict=True))

    # A run of two processes may be finished by one that does the work of both.
    checkpoint = folders['two'] / 'iter_2.pth'
    lines = train(folders['resumed'], '--resume', checkpoint, batch=4, **common)
    assert [line[0] for line in lines] == ['3', '4']
    assert difference(expected, weights(folders['resumed'], 4)) < 1e-10


@pytest.mark.slow
def test_two_processes_go_on_within_an_accumulation(helpers, data_root, tmp_path):
    """Each has gradients of its own until the step, and one file holds their mean."""
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    common = dict(helpers=helpers, data_root=data_root, batch=2, processes=2, accumulate=4)
    for folder, more in ((whole, ()), (resumed, ('--resume', whole / 'iter_2.pth'))):
        folder.mkdir()
        train(folder, *more, **common)
    assert difference(weights(whole, 4), weights(whole, 2)) > 1e-3
    assert difference(weights(whole, 4), weights(resumed, 4)) < 1e-10


FAILURES = [
    (0, 'training'),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in ((1, 'training'), (0, 'evaluation'), (1, 'evaluation'))
    ),
]


def failing(rank, moment, number, *more, helpers, data_root, work_dir):
    return (
        ROOT / 'tools/train.py', helpers / 'failing.py', '--work-dir', work_dir,
        '--launcher', 'pytorch',
        # With workers, which inherit the connections of their process and outlive it for a while.
        *options(
            data_root, 'custom_hooks.0.type=Fail', f'custom_hooks.0.rank={rank}',
            f'custom_hooks.0.moment={moment}', f'custom_hooks.0.number={int(number)}',
            'train_dataloader.batch_size=2', 'train_cfg.max_iters=1000',
            'train_cfg.val_interval=5', *more, workers=1,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(('rank', 'moment'), FAILURES)
def test_a_killed_process_ends_the_other(rank, moment, helpers, data_root, tmp_path):
    common = dict(helpers=helpers, data_root=data_root, work_dir=tmp_path / 'out')
    words = failing(rank, moment, signal.SIGKILL, **common)
    with ByHand(*words, helpers=helpers, cwd=tmp_path) as run:
        assert run.processes[rank].wait() == -signal.SIGKILL, run.log(rank)
        assert run.processes[1 - rank].wait() == 1, run.log(1 - rank)
        assert re.search('(?i)connection (?:closed|reset)', run.log(1 - rank))
        assert 'Iter(train) [   3/1000]' in run.log(0)
        assert ('Iter(val)' in run.log(0)) == (moment == 'evaluation')


@pytest.mark.slow
def test_torchrun_ends_the_other_as_well(helpers, data_root, tmp_path):
    common = dict(helpers=helpers, data_root=data_root, work_dir=tmp_path / 'out')
    words = failing(1, 'training', signal.SIGKILL, **common)
    done = subprocess.run(
        [sys.executable, *map(str, torchrun(*words))], cwd=tmp_path, env=environment(helpers),
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert 'SIGKILL' in done.stderr


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_other_after_the_timeout(helpers, data_root, tmp_path):
    common = dict(helpers=helpers, data_root=data_root, work_dir=tmp_path / 'out')
    words = failing(1, 'training', signal.SIGSTOP, 'env_cfg.dist_cfg.timeout=60', **common)
    with ByHand(*words, helpers=helpers, cwd=tmp_path) as run:
        assert run.processes[0].wait() == 1
        assert re.search('(?i)timed out', run.log(0))
        assert run.processes[1].poll() is None


@pytest.mark.parametrize('timeout', ['60', 0, -1])
def test_a_timeout_is_a_number_of_seconds(timeout):
    cfg = Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(timeout=timeout))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, 'is_available', lambda: False)
        with pytest.raises(ValueError, match=f'timeout has to be .* not {timeout!r}'):
            build_runner(cfg)


def test_every_image_counts_once_whatever_their_number(helpers, data_root, tmp_path):
    words = (helpers / 'count.py', tmp_path, data_root)
    alone(*words, 'none', helpers=helpers, cwd=tmp_path)
    one = json.loads((tmp_path / 'rank0.json').read_text())
    with ByHand(*words, 'pytorch', helpers=helpers, cwd=tmp_path) as run:
        for rank in range(2):
            assert run.processes[rank].wait() == 0, run.log(rank)
    two = [json.loads((tmp_path / f'rank{rank}.json').read_text()) for rank in range(2)]
    assert len(one) == 6
    for name, expected in one.items():
        images = int(name[0])
        assert expected['images'] == expected['seen'] == images
        # Every process gets as many images, so one of them comes twice, but is counted once.
        assert [result[name].pop('seen') for result in two] == [math.ceil(images / 2)] * 2
        expected.pop('seen')
        assert two[0][name] == two[1][name] == expected
    # An image more or less would be noticed.
    assert len({str(result['areas']) for result in one.values()}) == 3


@pytest.mark.slow
def test_label_maps_and_record_are_those_of_one_process(helpers, data_root, tmp_path):
    checkpoint = tmp_path / 'random.pth'
    model = MODELS.build(Config.fromfile(CONFIG).model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), checkpoint)
    written = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        words = (
            ROOT / 'tools/test.py', CONFIG, checkpoint, '--work-dir', folder, '--output', 'all',
            '--out', folder / 'labels', *options(data_root, 'randomness.seed=0'),
        )  # fmt: skip
        if processes == 1:
            alone(*words, helpers=helpers, cwd=folder)
        else:
            words += ('--launcher', 'pytorch')
            with ByHand(*words, helpers=helpers, cwd=folder) as run:
                for rank in range(2):
                    assert run.processes[rank].wait() == 0, run.log(rank)
        files = sorted((folder / 'labels').rglob('*.*'))
        pictures = {str(file.relative_to(folder)): file.read_bytes() for file in files}
        written[processes] = pictures, (folder / 'iou.jsonl').read_text()
    pictures, record = written[1]
    assert Counter(Path(name).parent.name for name in pictures) == dict.fromkeys(
        ('top', 'bottom', 'ensemble'), IMAGES
    )
    assert len(np.unique(mmcv.imread(str(files[0]), 'unchanged'))) > 1
    assert record.count('\n') == 1
    assert written[2] == written[1]
