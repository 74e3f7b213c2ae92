"""bfloat16, channels_last and compiled networks in training: alone, together, and as exact."""

from __future__ import annotations

import math
import re
import warnings
from typing import ClassVar

import pytest
import torch
import torch._inductor as inductor
import torch.distributed as dist
from mmengine.utils import digit_version
from torch import nn

from mmseg_coop.apis import build_runner
from mmseg_coop.engine import BFloat16OptimWrapper, CompileHook
from mmseg_coop.errors import ConfigError, NumericError
from tests.engine.runs import Act, Toy, assert_same, comparable, loader, logged, newest
from tests.engine.runs import train as train_toy

LAYOUT = dict(type='ChannelsLastHook')
TYPE = 'BFloat16OptimWrapper'
NHWC = dict(memory_format=torch.channels_last)


@pytest.fixture(scope='module')
def build(small_cfg):
    """Build the runner of a small pair whose gradients are clipped and accumulated."""

    def make(folder, *hooks, wrapper='OptimWrapper', max_iters=4, launcher='none', **options):
        cfg = small_cfg(
            folder,
            **{
                'train_cfg.max_iters': max_iters,
                'train_cfg.val_interval': 4,
                'default_hooks.checkpoint.interval': 1,
                'default_hooks.checkpoint.max_keep_ckpts': -1,
                'optim_wrapper.type': wrapper,
                'optim_wrapper.accumulative_counts': 3,
                'optim_wrapper.clip_grad': dict(max_norm=1),
                **options,
            },
        )
        cfg.custom_hooks.extend(hooks)
        cfg.launcher = launcher
        return build_runner(cfg)

    return make


def dense_convs(model):
    """The 3x3 convolutions, whose layout tells; those by depth have both."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    return [conv for conv in convs if conv.kernel_size == (3, 3)]


@pytest.fixture(scope='module')
def expected(build, tmp_path_factory):
    """What a run in bfloat16, channels last, ends with."""
    folder = tmp_path_factory.mktemp('expected')
    build(folder, LAYOUT, wrapper=TYPE).train()
    return comparable(newest(folder))


@pytest.mark.parametrize(('hooks', 'wrapper'), [([LAYOUT], 'OptimWrapper'), ([], TYPE)])
def test_runs_are_what_they_say_and_are_resumed_exactly(hooks, wrapper, build, tmp_path):
    """From between two steps, with the gradients so far."""
    runner = build(tmp_path / 'whole', *hooks, wrapper=wrapper)
    seen = set()

    def note(_, args, out):
        seen.add((torch.is_grad_enabled(), out.dtype, out.is_contiguous(**NHWC)))

    convs = dense_convs(runner.model)
    runner.register_hook(Act(lambda _: [conv.register_forward_hook(note) for conv in convs], 1))
    runner.train()
    low = torch.bfloat16 if wrapper == TYPE else torch.float32
    assert seen == {(True, low, bool(hooks)), (False, torch.float32, bool(hooks))}
    state = runner.optim_wrapper.optimizer.state
    for conv in convs:
        for tensor in (conv.weight, conv.weight.grad, state[conv.weight]['momentum_buffer']):
            if tensor is not None:
                assert tensor.dtype == torch.float32
                assert tensor.is_contiguous(**NHWC) == bool(hooks)
    hub = runner.message_hub
    assert all(map(math.isfinite, hub.get_scalar('train/loss').data[0]))
    assert len(hub.get_scalar('train/grad_norm').data[0]) == 2  # steps in iterations 3 and 4

    options = dict(resume=True, load_from=str(tmp_path / 'whole/iter_2.pth'))
    build(tmp_path / 'resumed', *hooks, wrapper=wrapper, **options).train()
    assert_same(comparable(newest(tmp_path / 'resumed')), comparable(newest(tmp_path / 'whole')))


def test_channels_last_changes_no_value(build, tmp_path):
    """Dropout aside, which draws its numbers in the order of the memory."""
    losses = []
    for hooks in ([], [LAYOUT]):
        options = {'model.decode_head.dropout_ratio': 0, 'train_cfg.val_begin': 2}
        runner = build(tmp_path / str(len(hooks)), *hooks, max_iters=1, **options)
        runner.train()
        losses.append(runner.message_hub.get_scalar('train/loss').current())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_bfloat16_steps_are_those_of_a_plain_loop(tmp_path):
    data = [torch.rand(20) for _ in range(6)]
    model = Toy()
    expected = Toy()
    expected.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.5)
    # An iteration is one sample, in order; three make a step.
    runner = train_toy(
        tmp_path, model, max_iters=6,
        data=dict(
            batch_size=1, dataset=[dict(inputs=x) for x in data], num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        optim_wrapper=dict(
            type=TYPE, optimizer=dict(type='SGD', lr=0.5), accumulative_counts=3,
            clip_grad=dict(max_norm=0.01),
        ),
    )  # fmt: skip
    for number, x in enumerate(data):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            output = torch.nn.functional.linear(x[None], *expected.layer.parameters())
            assert output.dtype == torch.bfloat16
            loss = output.float().square().mean()
        (loss / 3).backward()
        if number % 3 == 2:
            nn.utils.clip_grad_norm_(expected.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad()
    assert isinstance(runner.optim_wrapper, BFloat16OptimWrapper)
    assert torch.equal(model.layer.weight, expected.layer.weight)


class Count:
    """A backend that runs graphs as they are, and counts them."""

    graphs: ClassVar = []  # configs are copied

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph.forward


@pytest.fixture
def process_group(tmp_path):
    """A process group of this process alone, in which models are wrapped as in any other."""
    store = f'file://{tmp_path}/store'
    dist.init_process_group('gloo', init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('compiled', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_several_processes_train_alike(
    compiled, build, expected, process_group, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    hooks = LAYOUT, dict(type='CompileHook', backend=Count())
    runner = build(tmp_path / 'run', *hooks[: 1 + compiled], wrapper=TYPE, launcher='pytorch')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        runner.train()
    assert isinstance(runner.model, nn.parallel.DistributedDataParallel)
    # It says so if the weights were laid out after it was made.
    assert not [warning for warning in said if 'Grad strides' in str(warning.message)]
    assert_same(comparable(newest(tmp_path / 'run')), expected)


@pytest.fixture
def once(monkeypatch):
    """What is compiled a second time is an error."""
    Count.graphs.clear()
    torch._dynamo.reset()
    monkeypatch.setattr(torch._dynamo.config, 'error_on_recompile', True)
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.7'),
    reason='before torch 2.7 generators are not followed, so the heads are compiled in pieces',
)
def test_each_network_is_one_graph_that_batches_share(build, expected, once, tmp_path):
    """Evaluations, with images of another size, run as they are, and so does the model behind."""
    compile = dict(type='CompileHook', backend=Count(), fullgraph=True)
    runner = build(tmp_path / 'run', LAYOUT, compile, wrapper=TYPE)
    runner.train()
    assert_same(comparable(newest(tmp_path / 'run')), expected)
    assert len(Count.graphs) == 3  # with the one that tries whether it works
    said = logged(tmp_path / 'run')
    assert 'The first step compiles backbone and decode_head; it takes long.' in said
    assert len(re.findall(r'The first step took \d+\.\d s\.', said)) == 1
    assert all('forward' not in vars(part) for part in runner.model.children())


def test_a_loss_that_is_not_finite_is_seen_behind_compiled_networks(tmp_path):
    data = [dict(inputs=torch.full((20,), math.nan))] * 2
    hooks = [CompileHook(backend='eager'), dict(type='NonFiniteLossHook')]
    with pytest.raises(NumericError, match='The loss of iteration 1 is not finite'):
        train_toy(tmp_path, Toy(), data=data, hooks=hooks)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(backend='indctor'), "Invalid backend: 'indctor'"),
        (dict(mode='fast'), 'Unrecognized mode=fast'),
        (dict(level=3), "unexpected keyword argument 'level'"),
    ],
)
def test_what_cannot_compile_is_said_before_the_first_step(options, said, tmp_path):
    model = Toy()
    with pytest.raises(ConfigError, match=f'CompileHook.* fails on cpu: .*{said}') as refused:
        train_toy(tmp_path, model, hooks=[CompileHook(**options)])
    assert '\n' not in str(refused.value)
    assert model.calls == 0


@pytest.mark.slow
def test_a_missing_compiler_is_said(tmp_path, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path / 'cache'))
    missing = inductor.config.patch({'cpp.cxx': ('no-such-compiler',)})
    said = r'No working C\+\+ compiler found .* such as g\+\+'
    with missing, pytest.raises(ConfigError, match=said):
        train_toy(tmp_path, hooks=[CompileHook()])


@pytest.mark.slow
def test_compiled_runs_are_resumed_exactly(tmp_path):
    data = [dict(inputs=torch.rand(20)) for _ in range(8)]
    state = Toy().state_dict()
    ends = []
    for folder, hooks in (('plain', []), ('compiled', [CompileHook()]), ('on', [CompileHook()])):
        model = Toy()
        model.load_state_dict(state)
        more = dict(load_from=str(tmp_path / 'compiled/iter_2.pth')) if folder == 'on' else {}
        more.update(hooks=hooks, randomness=dict(seed=0))
        train_toy(tmp_path / folder, model, data=loader(data), **more)
        ends.append(newest(tmp_path / folder)['state_dict'])
    plain, compiled, resumed = ends
    assert_same(resumed, compiled)
    torch.testing.assert_close(compiled, plain)
