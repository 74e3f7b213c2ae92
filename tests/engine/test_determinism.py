"""The same seed gives the same weights, in processes that know nothing of each other."""

from __future__ import annotations

import torch
from mmengine.runner import Runner

from tests.conftest import MINI, ROOT
from tests.engine.runs import assert_same, comparable, newest
from tests.processes import script, start

ITERATIONS = 10


def test_the_same_seed_gives_the_same_weights(small_cfg, small_words, tmp_path):
    options = {
        'train_cfg.max_iters': ITERATIONS,
        'train_cfg.val_interval': ITERATIONS // 2,
        'default_hooks.checkpoint.interval': ITERATIONS,
        'default_hooks.logger.interval': ITERATIONS,
    }
    ends = []
    for seed in (7, 8):
        folder = tmp_path / f'here{seed}'
        Runner.from_cfg(small_cfg(folder, **options, **{'randomness.seed': seed})).train()
        ends.append(newest(folder))
    # Who reads the images does not matter.
    options.update({'train_dataloader.num_workers': 2, 'train_dataloader.persistent_workers': True})
    folder = tmp_path / 'elsewhere'
    words = ('--work-dir', folder, *small_words(**options, **{'randomness.seed': 7}))
    # A fork of another interpreter than this one, whose hashes are its own.
    process = start(
        script, ROOT / 'tools/train.py', MINI, *words, log=tmp_path / 'log', cwd=tmp_path
    )
    process.join()
    assert process.exitcode == 0, (tmp_path / 'log').read_text()
    assert ends[0]['meta']['iter'] == ITERATIONS
    assert_same(comparable(newest(folder)), comparable(ends[0]))

    first, other = (end['state_dict'] for end in ends)
    names = [name for name in first if name.endswith('.weight')]
    assert len(names) > 50
    for name in names:
        assert not torch.equal(first[name], other[name]), name
