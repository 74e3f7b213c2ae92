"""The configs of docs/recipes.md do what the page says."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from mmengine.config import Config

from mmseg_coop.apis import build_runner
from mmseg_coop.engine import CompileHook, load_checkpoint_data
from mmseg_coop.errors import ConfigError
from tests.conftest import ROOT
from tests.engine.runs import assert_same, comparable, files, newest

EVERY = {
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': -1,
    'train_cfg.val_interval': 1,
}


@pytest.fixture
def build(tmp_path, small_options):
    """Build the runner of a config of the page, made small; a config without a name is the base."""
    (tmp_path / 'my_configs').mkdir()
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')

    def make(name, folder='run', **options):
        page = (ROOT / 'docs/recipes.md').read_text()
        (text,) = re.findall(
            rf'^# my_configs/{name}\.py\n(.*?)^```', page, re.DOTALL | re.MULTILINE
        )
        file = tmp_path / 'my_configs' / f'{name}.py'
        file.write_text(text)
        cfg = Config.fromfile(file)
        small = small_options(**options)
        if name == 'layer-decay':
            small = {k: v for k, v in small.items() if 'networks.top.' not in k}
        cfg.merge_from_dict(small)
        cfg.work_dir, cfg.launcher = str(tmp_path / folder), 'none'
        cfg.experiment_name = f'{tmp_path.name}_{name}_{folder}'
        return build_runner(cfg)

    return make


def test_each_network_learns_at_its_rate(build):
    runner = build('rates', **{'train_cfg.max_iters': 1, 'train_cfg.val_begin': 2})
    runner.train()
    names = {parameter: name for name, parameter in runner.model.named_parameters()}
    found = Counter()
    for group in runner.optim_wrapper.optimizer.param_groups:
        (parameter,) = group['params']
        part = '.'.join(names[parameter].split('.')[:3])
        found[part, round(group['initial_lr'], 6), group['weight_decay']] += 1
    assert {key for key in found if '.networks.' in key[0]} == {
        ('backbone.networks.top', 0.01, 1e-4),
        ('backbone.networks.bottom', 0.05, 0),
        ('decode_head.networks.top', 0.1, 1e-4),
        ('decode_head.networks.bottom', 0.2, 1e-4),
    }
    rest = {key[1:] for key in found if '.networks.' not in key[0]}
    assert rest == {(0.1, 1e-4)}  # of the paths


def test_layers_learn_at_falling_rates(build):
    runner = build('layer-decay', **{'train_cfg.max_iters': 1, 'train_cfg.val_begin': 2})
    runner.train()
    names = {parameter: name for name, parameter in runner.model.named_parameters()}
    rates = {
        names[group['params'][0]]: group['initial_lr']
        for group in runner.optim_wrapper.optimizer.param_groups
    }
    top = [name for name in rates if name.startswith('backbone.networks.top.')]
    assert min(rates[name] for name in top) == pytest.approx(0.00021, abs=5e-6)
    assert rates['backbone.networks.top.stages.3.1.gamma'] == pytest.approx(0.0008)
    assert rates['backbone.networks.bottom.conv1.conv.weight'] == pytest.approx(0.0005)
    assert {rate for name, rate in rates.items() if name.startswith('decode_head.')} == {0.001}


def evaluated(runner, split='val'):
    """Weights of each evaluation to come, by iteration."""
    loop, found = getattr(runner, f'{split}_loop'), {}
    evaluate = loop.evaluator.evaluate

    def note(size):
        found[runner.iter] = [weight.detach().clone() for weight in runner.model.parameters()]
        return evaluate(size)

    loop.evaluator.evaluate = note
    return found


def test_averaged_weights_are_evaluated_saved_resumed_and_tested(build, tmp_path):
    options = {**EVERY, 'train_cfg.max_iters': 3, 'custom_hooks.3.momentum': 0.3}
    runner = build('ema', **options)
    found = evaluated(runner)
    runner.train()
    names = [name for name, _ in runner.model.named_parameters()]
    average = None
    for iteration in range(1, 4):
        checkpoint = load_checkpoint_data(tmp_path / f'run/iter_{iteration}.pth')
        trained = [checkpoint['ema_state_dict'][f'module.{name}'] for name in names]
        saved = [checkpoint['state_dict'][name] for name in names]
        if average is None:
            average = trained
        else:
            average = [a.lerp(w, 0.3) for a, w in zip(average, trained, strict=True)]
            assert not torch.equal(saved[0], trained[0])
        torch.testing.assert_close(saved, average)
        assert_same(saved, found[iteration])

    build('ema', 'on', resume=True, load_from=f'{tmp_path}/run/iter_2.pth', **options).train()
    resumed = newest(tmp_path / 'on')
    assert_same(comparable(resumed), comparable(checkpoint))
    assert_same(resumed['ema_state_dict'], checkpoint['ema_state_dict'])

    tested = build('ema', 'test', load_from=f'{tmp_path}/run/iter_3.pth')
    found = evaluated(tested, 'test')
    tested.test()
    assert_same(found[0], saved)


def test_a_run_stops_early_also_when_it_is_resumed(build, tmp_path, monkeypatch):
    scores = dict(zip(range(1, 8), (5.0, 7.0, 7.05, 6.0, 7.05, 9.0, 9.0), strict=True))
    options = {**EVERY, 'train_cfg.max_iters': 7}

    def train(folder, **more):
        runner = build('early-stopping', folder, **options, **more)
        evaluate = runner.val_loop.evaluator.evaluate

        def rated(size):
            return {**evaluate(size), 'mIoU': scores[runner.iter]}

        runner.val_loop.evaluator.evaluate = rated
        runner.train()
        return runner

    runner = train('run')
    assert runner.iter == 5  # three evaluations after that of 7.0
    assert 'iter_5.pth' in files(tmp_path / 'run')
    assert 'best_mIoU_iter_3.pth' in files(tmp_path / 'run')
    said = next(tmp_path.glob('run/*/*.log')).read_text()
    assert 'ends early, at iteration 5: mIoU is 7.05, the best was 7.00.' in said
    for start in (4, 5):
        resumed = train(f'from{start}', resume=True, load_from=f'{tmp_path}/run/iter_{start}.pth')
        assert resumed.iter == 5


def test_activation_checkpoints_save_memory_and_change_nothing(build, tmp_path):
    seen = []
    for name in ('checkpointing', 'early-stopping'):
        runner = build(name, name, **{'train_cfg.max_iters': 2, 'train_cfg.val_begin': 3})
        calls, held = [], []
        block = runner.model.backbone.networks.top.layer3[0]
        block.register_forward_hook(lambda *_, calls=calls: calls.append(1))

        def pack(tensor, held=held):
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            runner.train()
        seen.append((comparable(newest(tmp_path / name)), len(calls), sum(held)))
    (end, calls, held), (plain, plain_calls, plain_held) = seen
    assert_same(end, plain)
    assert calls == plain_calls + 2  # once more in each iteration
    assert 'forward' not in vars(runner.model.backbone.networks.top.layer3)
    assert held < 0.6 * plain_held


def test_compiled_networks_have_no_activation_checkpoints(build):
    runner = build('checkpointing')
    runner.register_hook(CompileHook(backend='eager'))
    with pytest.raises(ConfigError, match='do not work together'):
        runner.train()


def test_a_metric_that_is_not_there_cannot_stop_a_run(build):
    with pytest.raises(ConfigError, match=r"monitor='miou' of ExactEarlyStoppingHook is no metric"):
        build('early-stopping', **{'custom_hooks.3.monitor': 'miou'}).train()
