from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import RuntimeInfoHook
from mmengine.logging import MessageHub
from mmengine.runner import Runner, get_priority
from mmseg.registry import HOOKS, TRANSFORMS
from mmseg.structures import SegDataSample

from mmseg_coop.engine import NonFiniteLossHook, load_checkpoint_data
from mmseg_coop.engine.numeric_fault import non_finite
from mmseg_coop.errors import NumericError
from tests.conftest import MINI, ROOT
from tests.engine.runs import Toy, train
from tests.processes import ByHand


@TRANSFORMS.register_module()
class SpoilImage(BaseTransform):
    """Puts NaN into the image that is read as the n-th."""

    spoiled = None

    def __init__(self, number):
        self.number = number

    def transform(self, results):
        self.number -= 1
        if self.number == 0:
            results['img'] = results['img'].astype('float32') * float('nan')
            SpoilImage.spoiled = results['img_path']
        return results


def assert_finite(path):
    checkpoint = load_checkpoint_data(path, 'cpu')
    assert not list(non_finite(checkpoint))
    return checkpoint


def test_a_training_stops_at_the_iteration_and_names_all_there_is(small_cfg, tmp_path):
    """The fourth iteration meets an image of NaN."""
    run = tmp_path / 'run'
    cfg = small_cfg(run, **{
        'train_cfg.max_iters': 6,
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.max_keep_ckpts': 1,
    })  # fmt: skip
    cfg.train_dataloader.dataset.pipeline.insert(-1, dict(type='SpoilImage', number=7))
    cfg.custom_hooks.insert(0, dict(type='EMAHook'))
    runner = Runner.from_cfg(cfg)
    with pytest.raises(NumericError) as stopped:
        runner.train()
    said, last = str(stopped.value), run / 'iter_3.pth'
    assert said.startswith('The loss of iteration 4 is not finite: loss nan, ')
    for network in ('top', 'bottom'):
        assert f'decode.{network}.loss_ce nan' in said
        assert re.search(rf'decode\.{network}\.acc_seg \d', said)
    assert f'learning rate {runner.optim_wrapper.get_lr()["lr"][0]:.4g};' in said
    assert 'images ' in said
    assert SpoilImage.spoiled in said
    assert f'The last good checkpoint is {last}.' in said
    assert '\n' not in said

    # The evaluation at iteration 2 wrote a best checkpoint, the third iteration the last one.
    assert {'best_mIoU_iter_2.pth', 'iter_3.pth'} == {file.name for file in run.glob('*.pth')}
    assert (run / 'last_checkpoint').read_text() == str(last)
    assert assert_finite(last)['meta']['iter'] == 3
    # The moving average is spared.
    average = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    assert list(non_finite(runner.model.state_dict()))
    assert not list(non_finite(average.ema_model.state_dict()))


class Lost(Toy):
    def change(self, output, loss):
        return loss * math.nan if self.calls == 3 else loss


def test_without_the_hook_the_training_would_go_on(tmp_path):
    checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=False)
    train(tmp_path, Lost(), default_hooks=dict(checkpoint=checkpoint))
    assert list(non_finite(load_checkpoint_data(tmp_path / 'iter_4.pth', 'cpu')))


def test_it_comes_before_all_that_keeps_weights_or_logs():
    own = get_priority(NonFiniteLossHook.priority)
    assert get_priority(RuntimeInfoHook.priority) < own
    assert own < min(get_priority(level) for level in ('NORMAL', 'BELOW_NORMAL', 'LOW', 'VERY_LOW'))


class OnDevice:
    """A loss that must not be waited for again."""

    def __getattribute__(self, name):
        raise AssertionError(f'{name} of the loss is asked for')


def look(values, data_batch=None, last=None):
    """Let the hook look at what was logged."""
    hub = MessageHub('test')
    for name, value in values.items():
        hub.update_scalar(f'train/{name}', value)
    if last:
        hub.update_info('last_ckpt', last)
    runner = SimpleNamespace(
        iter=9,
        message_hub=hub,
        optim_wrapper=SimpleNamespace(get_lr=lambda: dict(lr=[0.1, 0.01], base_lr=[0.1])),
    )
    outputs = {name: OnDevice() for name in values}
    NonFiniteLossHook().after_train_iter(runner, 9, data_batch, outputs=outputs)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('name', ['loss', 'decode.loss_ce'])
def test_every_loss_is_looked_at_where_it_is_logged(name, value):
    with pytest.raises(NumericError, match=rf'iteration 10 .*{name} {value}'):
        look({'loss': 1.0, 'decode.loss_ce': 1.0, name: value})


def test_only_losses_count():
    look({'loss': 1e38, 'decode.acc_seg': math.nan})


def test_all_files_and_learning_rates_and_where_to_go_on_are_named():
    samples = [SegDataSample(metainfo=dict(img_path=name)) for name in ('a.png', 'b.png')]
    with pytest.raises(
        NumericError, match=r'learning rate 0\.01, 0\.1; images a\.png, b\.png\. No '
    ):
        look(dict(loss=math.nan), dict(inputs=[], data_samples=samples))
    with pytest.raises(NumericError, match=r'is w/iter_5\.pth\. .* load_from=w/iter_5\.pth'):
        look(dict(loss=math.nan), last='w/iter_5.pth')


def test_the_configs_use_it():
    names = [hook.type for hook in Config.fromfile(MINI).custom_hooks]
    assert {'NonFiniteLossHook', 'CountSkippedStepsHook'} <= set(names)
    assert HOOKS.get('CheckLossHook') is NonFiniteLossHook  # its name in older configs


def test_a_command_ends_with_the_error(tool, small_words, tmp_path):
    words = small_words(**{
        'optim_wrapper.optimizer.lr': 1e30,
        'train_cfg.max_iters': 6,
        'default_hooks.checkpoint.interval': 1,
    })  # fmt: skip
    done = tool('tools/train.py', MINI, '--work-dir', tmp_path, '--no-validate', *words)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('error: The loss of iteration 2 is not finite')
    assert str(tmp_path / 'iter_1.pth') in last
    assert [file.name for file in tmp_path.glob('*.pth')] == ['iter_1.pth']
    assert_finite(tmp_path / 'iter_1.pth')


class LostInOne(Toy):
    """Its loss becomes NaN in the second of two processes at the third iteration."""

    def change(self, output, loss):
        return loss * math.nan if (get_rank(), self.calls) == (1, 3) else loss


def train_in_two(folder, interval):
    torch.distributed.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
    train(
        folder, LostInOne(), max_iters=100, launcher='pytorch', experiment_name='two',
        checkpoint=dict(interval=interval), hooks=[dict(type='NonFiniteLossHook')],
        cfg=dict(model_wrapper_cfg=wrapper),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('interval', [1, 2])
def test_one_faulty_process_of_two_ends_both(interval, tmp_path):
    with ByHand(train_in_two, tmp_path / 'run', interval, cwd=tmp_path) as run:
        assert [run.wait(rank) for rank in range(2)] == [1, 1]
    assert 'The loss of iteration 3 is not finite on rank 1' in run.log(1)
    # The gradients of both are NaN, though the loss of the first is fine. Its checkpoint of this
    # iteration, if there is to be one, is refused; otherwise it waits for the other, which is gone.
    assert ('The checkpoint of iteration 3 is not written' in run.log(0)) == (interval == 1)
    assert (tmp_path / 'run/last_checkpoint').read_text() == str(tmp_path / 'run/iter_2.pth')
    assert not (tmp_path / 'run/iter_3.pth').exists()
    assert_finite(tmp_path / 'run/iter_2.pth')


@pytest.mark.parametrize('script', ['slurm_train.sh', 'slurm_test.sh'])
def test_slurm_ends_all_processes_with_the_first(script):
    assert '--kill-on-bad-exit=1' in (ROOT / 'tools' / script).read_text()


def test_non_finite_names_what_is():
    state = dict(
        a=torch.tensor([1.0, math.inf]),
        b=[torch.ones(1), (torch.tensor(math.nan), 'text')],
        c=torch.tensor([1, 2]),
        d=None,
        e=math.nan,
        f=torch.full((4,), 3e38),  # whose sum is infinite
        g=torch.tensor([math.inf, -math.inf]),
        h=torch.empty(0),
        i=torch.tensor(True),
    )
    assert list(non_finite(state)) == ['a', 'b.1.0', 'g']
    assert list(non_finite(state['b'], 'optimizer')) == ['optimizer.1.0']
    assert list(non_finite(None)) == []
