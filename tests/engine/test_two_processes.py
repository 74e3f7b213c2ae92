"""Two processes with gloo: the result of one, no hang when one dies, every image counted once."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import runpy
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
from tests.engine.runs import CONFIG, ROOT

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
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
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


@pytest.fixture(scope='module')
def helpers(tmp_path_factory):
    """Folder with the module `helpers`, a script and a config."""
    folder = tmp_path_factory.mktemp('helpers')
    for name, text in dict(helpers=HELPERS, count=COUNT, comparable=COMPARABLE).items():
        (folder / f'{name}.py').write_text(text)
    return folder


def environment(helpers, **variables):
    kept = {k: v for k, v in os.environ.items() if k not in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')}
    path = os.pathsep.join([str(helpers), str(ROOT), os.environ.get('PYTHONPATH', '')])
    common = dict(PYTHONPATH=path, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    return {**kept, **common, **variables}


def alone(*words, helpers, cwd):
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment(helpers), text=True,
        capture_output=True, check=False,
    )  # fmt: skip


def torchrun(*words):
    return '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *words


def open_store():
    """Open where two processes meet before they start, as torchrun does: its port stays free."""
    return torch.distributed.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)


def torchrun_variables(store, rank):
    return dict(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE='True',
        TORCHELASTIC_RESTART_COUNT='0',
    )  # fmt: skip


class ByHand:
    """Two processes that nobody watches; each writes to a file."""

    def __init__(self, *words, helpers, cwd):
        self.store = open_store()
        self.logs = [cwd / f'log{rank}' for rank in range(2)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            variables = torchrun_variables(self.store, rank)
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

    def succeed(self):
        for rank in range(2):
            assert self.processes[rank].wait() == 0, self.log(rank)


@pytest.fixture
def train(helpers, small_words):
    """Train in one process or two; return iterations and losses that are logged, and weights."""

    def run(work_dir, *more, batch, processes=1, accumulate=1):
        work_dir.mkdir()
        words = [
            ROOT / 'tools/train.py', helpers / 'comparable.py', '--work-dir', work_dir, *more,
            *(['--launcher', 'pytorch'] if processes == 2 else []),
            *small_words(**{
                'train_dataloader.batch_size': batch,
                'train_cfg.max_iters': 4,
                'train_cfg.val_interval': 2,
                'default_hooks.checkpoint.interval': 1,
                'default_hooks.checkpoint.max_keep_ckpts': -1,
                'optim_wrapper.accumulative_counts': accumulate,
            }),
        ]  # fmt: skip
        done = alone(
            *(torchrun(*words) if processes == 2 else words), helpers=helpers, cwd=work_dir
        )
        assert done.returncode == 0, done.stderr[-3000:]
        log = max(work_dir.glob('*/*.log')).read_text()  # the newest: their names are the time
        return re.findall(r'Iter\(train\) \[(\d)/\d\].* loss: (\S+)', log)

    return run


def weights(work_dir, iteration):
    return load_checkpoint_data(work_dir / f'iter_{iteration}.pth', 'cpu')['state_dict']


def difference(left, right):
    assert set(left) == set(right)
    return max((left[key].double() - right[key].double()).abs().max().item() for key in left)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_doubled_batch(train, tmp_path):
    """In double precision, where rounding hides nothing."""
    one, two, half, resumed = (tmp_path / name for name in ('one', 'two', 'half', 'resumed'))
    expected_lines = train(one, batch=4)
    lines = train(two, '--channels-last', batch=2, processes=2)
    train(half, batch=2)
    expected = weights(one, 4)
    assert difference(expected, weights(one, 3)) > 1e-3
    assert difference(expected, weights(two, 4)) < 1e-10
    assert difference(expected, weights(half, 4)) > 1e-3

    # The log has the losses of the first process, on its half of the batch.
    assert [line[0] for line in expected_lines] == [line[0] for line in lines] == [*'1234']
    assert all(a[1] != b[1] for a, b in zip(expected_lines, lines, strict=True))

    # A run of two processes may be finished by one that does the work of both.
    lines = train(resumed, '--resume', two / 'iter_2.pth', batch=4)
    assert [line[0] for line in lines] == ['3', '4']
    assert difference(expected, weights(resumed, 4)) < 1e-10


@pytest.mark.slow
def test_two_processes_are_resumed_within_an_accumulation(train, tmp_path):
    """Each has gradients of its own until the step, and one file holds their mean."""
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    for folder, more in ((whole, ()), (resumed, ('--resume', whole / 'iter_2.pth'))):
        train(folder, *more, batch=2, processes=2, accumulate=4)
    assert difference(weights(whole, 4), weights(whole, 2)) > 1e-3
    assert difference(weights(whole, 4), weights(resumed, 4)) < 1e-10


@pytest.fixture
def failing(helpers, small_words, tmp_path):
    """Words of a training in which a process gets a signal."""

    def words(rank, moment, number, **options):
        return (
            ROOT / 'tools/train.py', helpers / 'comparable.py', '--work-dir', tmp_path / 'out',
            '--launcher', 'pytorch',
            *small_words(**{
                'custom_hooks.0.type': 'Fail',
                'custom_hooks.0.rank': rank,
                'custom_hooks.0.moment': moment,
                'custom_hooks.0.number': int(number),
                'train_cfg.max_iters': 1000,
                'train_cfg.val_interval': 5,
                'val_dataloader.dataset.indices': 4,
                # Workers inherit the connections of their process and outlive it for a while.
                'train_dataloader.num_workers': 1,
                'train_dataloader.persistent_workers': True,
                **options,
            }),
        )  # fmt: skip

    return words


@pytest.mark.parametrize(
    ('rank', 'moment'),
    [
        (0, 'training'),
        pytest.param(1, 'training', marks=pytest.mark.slow),
        pytest.param(0, 'evaluation', marks=pytest.mark.slow),
        pytest.param(1, 'evaluation', marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_ends_the_other(rank, moment, failing, helpers, tmp_path):
    words = failing(rank, moment, signal.SIGKILL)
    with ByHand(*words, helpers=helpers, cwd=tmp_path) as run:
        assert run.processes[rank].wait() == -signal.SIGKILL, run.log(rank)
        assert run.processes[1 - rank].wait() == 1, run.log(1 - rank)
        assert re.search('(?i)connection (?:closed|reset)', run.log(1 - rank))
        assert re.search(r'^train +3/1000', run.log(0), re.MULTILINE)
        assert ('evaluation' in run.log(0)) == (moment == 'evaluation')
        assert not re.search(r'^(config|train) ', run.log(1), re.MULTILINE)  # one speaks for both


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_other_after_the_timeout(failing, helpers, tmp_path):
    words = failing(1, 'training', signal.SIGSTOP, **{'env_cfg.dist_cfg.timeout': 60})
    with ByHand(*words, helpers=helpers, cwd=tmp_path) as run:
        assert run.processes[0].wait() == 1
        assert re.search('(?i)timed out', run.log(0))
        assert run.processes[1].poll() is None


@pytest.mark.parametrize('timeout', ['60', 0, -1])
def test_a_timeout_is_a_number_of_seconds(timeout, monkeypatch):
    cfg = Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(timeout=timeout))))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=f'timeout has to be .* not {timeout!r}'):
        build_runner(cfg)


def count(words, variables):
    """Run the script of :data:`COUNT` in a fork, which need not import all anew."""
    os.environ.update(variables, CUDA_VISIBLE_DEVICES='')
    sys.argv = [*words, 'pytorch']
    runpy.run_path(words[0])


def test_every_image_counts_once_whatever_their_number(helpers, scenes, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(helpers)
    words = [str(word) for word in (helpers / 'count.py', tmp_path, scenes)]
    store = open_store()
    context = multiprocessing.get_context('fork')
    processes = [
        context.Process(target=count, args=(words, torchrun_variables(store, rank)))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    two = [json.loads((tmp_path / f'rank{rank}.json').read_text()) for rank in range(2)]
    monkeypatch.setattr(sys, 'argv', [*words, 'none'])
    runpy.run_path(words[0])
    one = json.loads((tmp_path / 'rank0.json').read_text())
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
def test_label_maps_and_record_are_those_of_one_process(
    helpers, small_cfg, small_words, tool, tmp_path
):
    checkpoint = tmp_path / 'random.pth'
    model = MODELS.build(small_cfg(tmp_path / 'model').model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), checkpoint)
    written = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        words = [
            CONFIG, checkpoint, '--work-dir', folder, '--output', 'all', '--out', folder / 'labels',
            *small_words(**{
                'test_dataloader.dataset.data_prefix.img_path': 'img_dir/val',
                'test_dataloader.dataset.data_prefix.seg_map_path': 'ann_dir/val',
            }),
        ]  # fmt: skip
        if processes == 1:
            assert tool('tools/test.py', *words, cwd=folder).returncode == 0
        else:
            words = [ROOT / 'tools/test.py', '--launcher', 'pytorch', *words]
            with ByHand(*words, helpers=helpers, cwd=folder) as run:
                run.succeed()
        files = sorted((folder / 'labels').rglob('*.*'))
        maps = {str(file.relative_to(folder)): file.read_bytes() for file in files}
        written.append((maps, (folder / 'iou.jsonl').read_text()))
    maps, record = written[0]
    assert Counter(Path(name).parent.name for name in maps) == dict.fromkeys(
        ('top', 'bottom', 'ensemble'), IMAGES
    )
    assert len(np.unique(mmcv.imread(str(files[0]), 'unchanged'))) > 1
    assert record.count('\n') == 1
    assert written[1] == written[0]
