"""A training loop whose every random number follows from the seed and the iteration."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import mmengine.runner
import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmseg.registry import LOOPS
from torch.utils.data import BatchSampler, DataLoader, Dataset
from typing_extensions import override

_ITERATIONS, _SAMPLES, _EVALUATIONS = 0, 1, 2  # sequences of random numbers that never meet


def _seed(*key: int) -> None:
    """Seed Python, numpy and torch (all devices) with a number that is made of several."""
    number = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  # what mmcv draws from
    torch.manual_seed(number)


class _Place(int):
    """Index of a sample, which also knows where in the sampler's sequence it stands."""

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...] = ()) -> _Place:
        place = super().__new__(cls, index)
        place.key = key
        return place


class _PlacedSampler:
    """The sequence of an infinite sampler from a position on; empty before that is known."""

    def __init__(self, sampler: InfiniteSampler) -> None:
        self.sampler = sampler
        self.start: int | None = None

    def __iter__(self) -> Iterator[_Place]:
        sampler = self.sampler
        if self.start is None:  # mmengine 0.10.7 starts to read before it resumes
            return
        # Anew, since the seed is known only when a checkpoint was loaded.
        for position, index in enumerate(sampler._indices_of_rank()):
            if position >= self.start:
                # Among the samples of all processes, which take them in turn.
                place = position * sampler.world_size + sampler.rank
                yield _Place(index, (sampler.seed, _SAMPLES, 0, place))

    def __len__(self) -> int:
        return len(self.sampler)


class _SeededDataset(Dataset):
    """A dataset whose random transforms depend on the place of the sample, not on what was before.

    So it does not matter which worker makes it, or whether there are any.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, place: int) -> Any:
        if isinstance(place, _Place):
            # Without workers these are the generators of the iteration too, which seeds them anew.
            _seed(*place.key)
        return self.dataset[int(place)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


@LOOPS.register_module()
class ExactIterBasedTrainLoop(mmengine.runner.IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop``, which resumes exactly after a kill.

    The configs of this project train with it; in others it is chosen by
    ``train_cfg=dict(type='ExactIterBasedTrainLoop', ...)``. Each iteration, evaluation and sample
    has random numbers of its own, made from the seed and its number. So no state of a generator has
    to be stored, the number of workers does not matter, and a resumed run is exact on the
    CPU, without reading the images again that were seen before. An evaluation that was due at
    the checkpoint, and is not in it, comes first. The gradients of an optimizer that accumulates
    them are in the checkpoints of ``AtomicCheckpointHook``.

    Several processes draw the samples that one with the batch of all would draw. So with as many
    images an iteration in total, a run may go on with another number of processes; iterations with
    more or fewer images are counted as if all before had had as many.

    This needs the sampler ``InfiniteSampler``, without a batch sampler of one's own; with others
    the data are those of mmengine, and a resumed run is told so.

    Args:
        runner: The runner.
        dataloader: The data loader or its config.
        **kwargs: As of mmengine's loop: ``max_iters``, ``val_begin``, ``val_interval``, ...
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs: Any) -> None:
        self._placed: _PlacedSampler | None = None
        if isinstance(dataloader, dict):
            dataset = dataloader['dataset']
            if isinstance(dataset, dict):
                dataset = DATASETS.build(dataset)
                if hasattr(dataset, 'full_init'):
                    dataset.full_init()
            loader: DataLoader = runner.build_dataloader(
                {**dataloader, 'dataset': _SeededDataset(dataset)}, seed=runner.seed
            )
            batches = loader.batch_sampler
            if type(batches) is BatchSampler and isinstance(batches.sampler, InfiniteSampler):
                batches.sampler = self._placed = _PlacedSampler(batches.sampler)
            dataloader = loader
        super().__init__(runner, dataloader, **kwargs)

    @override
    def run(self) -> torch.nn.Module:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._go_to(self._iter)
        if self._iter > 0:
            self._decide_current_val_interval()
            self._validate()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            self._validate()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    @override
    def run_iter(self, data_batch: Any) -> None:
        _seed(self.runner.seed, _ITERATIONS, get_rank(), self._iter)
        super().run_iter(data_batch)

    def _go_to(self, iteration: int) -> None:
        if self._placed is not None:
            self._placed.sampler.seed = self.runner.seed  # that of the checkpoint
            self._placed.start = iteration * self.dataloader.batch_sampler.batch_size
            self.dataloader_iterator = iter(self.dataloader)
        elif iteration:
            self.runner.logger.warning(
                f'Reading the {iteration} batches again that were seen before. The resumed run is '
                'not exactly the one that was interrupted; with InfiniteSampler it would be.'
            )
            for _ in range(iteration):
                next(self.dataloader_iterator)

    def _validate(self) -> None:
        """Evaluate if it is due and not known from the checkpoint."""
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        if self.runner.val_loop is None or self._iter < self.val_begin or not due:
            return
        hub = self.runner.message_hub
        if hub.runtime_info.get('evaluated_iter') != self._iter:
            # In the checkpoint only if it is written, as a new best one, after the evaluation.
            hub.update_info('evaluated_iter', self._iter)
            _seed(self.runner.seed, _EVALUATIONS, get_rank(), self._iter)
            self.runner.val_loop.run()
