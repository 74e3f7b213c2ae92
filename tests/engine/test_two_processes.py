"""Two processes with gloo: the result of one, no hang when one dies, every image counted once."""

from __future__ import annotations

import json
import math
import re
import signal
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
from tests.conftest import MINI, ROOT
from tests.processes import ByHand, script

IMAGES = 7
#: What the two runs must not differ in: batch norm, which sees the batch of one process, and
#: dropout, which every process draws for itself. The mean of the loss is over all pixels: one over
#: labelled pixels weighs those of a process by how many it has.
COMPARABLE = f"""
_base_ = [{str(MINI)!r}]
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


def run_script(helpers, *words):
    """Run a script that finds the module `helpers`."""
    sys.path.insert(0, str(helpers))
    script(*words)


@pytest.fixture
def train(helpers, small_words):
    """Train in one process or two; return iterations and losses that are logged, and weights."""

    def run(work_dir, *more, batch, processes=1, accumulate=1):
        work_dir.mkdir()
        words = [
            ROOT / 'tools/train.py', helpers / 'comparable.py', '--work-dir', work_dir, *more,
            '--launcher', 'pytorch' if processes > 1 else 'none',
            *small_words(**{
                'train_dataloader.batch_size': batch,
                'train_cfg.max_iters': 4,
                'train_cfg.val_interval': 2,
                'default_hooks.checkpoint.interval': 1,
                'default_hooks.checkpoint.max_keep_ckpts': -1,
                'optim_wrapper.accumulative_counts': accumulate,
            }),
        ]  # fmt: skip
        with ByHand(run_script, helpers, *words, cwd=work_dir, number=processes) as run:
            run.succeed()
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
    with ByHand(run_script, helpers, *words, cwd=tmp_path) as run:
        assert run.wait(rank) == -signal.SIGKILL, run.log(rank)
        assert run.wait(1 - rank) == 1, run.log(1 - rank)
        assert re.search('(?i)connection (?:closed|reset)', run.log(1 - rank))
        assert re.search(r'^train +3/1000', run.log(0), re.MULTILINE)
        assert ('evaluation' in run.log(0)) == (moment == 'evaluation')
        assert not re.search(r'^(config|train) ', run.log(1), re.MULTILINE)  # one speaks for both


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_other_after_the_timeout(failing, helpers, tmp_path):
    words = failing(1, 'training', signal.SIGSTOP, **{'env_cfg.dist_cfg.timeout': 20})
    with ByHand(run_script, helpers, *words, cwd=tmp_path) as run:
        assert run.wait(0) == 1
        assert re.search('(?i)timed out', run.log(0))
        assert run.processes[1].is_alive()


@pytest.mark.parametrize('timeout', ['60', 0, -1])
def test_a_timeout_is_a_number_of_seconds(timeout, monkeypatch):
    cfg = Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(timeout=timeout))))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=f'timeout has to be .* not {timeout!r}'):
        build_runner(cfg)


def test_every_image_counts_once_whatever_their_number(helpers, scenes, tmp_path):
    words = helpers / 'count.py', tmp_path, scenes
    with ByHand(run_script, helpers, *words, 'pytorch', cwd=tmp_path) as run:
        run.succeed()
    two = [json.loads((tmp_path / f'rank{rank}.json').read_text()) for rank in range(2)]
    with ByHand(run_script, helpers, *words, 'none', cwd=tmp_path, number=1) as run:
        run.succeed()
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
            MINI, checkpoint, '--work-dir', folder, '--output', 'all', '--out', folder / 'labels',
            *small_words(**{
                'test_dataloader.dataset.data_prefix.img_path': 'img_dir/val',
                'test_dataloader.dataset.data_prefix.seg_map_path': 'ann_dir/val',
            }),
        ]  # fmt: skip
        if processes == 1:
            assert tool('tools/test.py', *words, cwd=folder).returncode == 0
        else:
            words = [ROOT / 'tools/test.py', '--launcher', 'pytorch', *words]
            with ByHand(run_script, helpers, *words, cwd=folder) as run:
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
