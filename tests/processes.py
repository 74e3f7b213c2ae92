"""Programs in processes of their own, which need not import everything anew."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys

import pytest
import torch

from tests.conftest import quicken

#: Each process is forked from one that has imported these, and done nothing else.
_FORKS = multiprocessing.get_context('forkserver')
_FORKS.set_forkserver_preload(['tests.conftest', 'tests.engine.runs'])


def start(function, *arguments, log, cwd, **variables):
    """Call a function in a process.

    Args:
        function: What to call; a function of a module.
        arguments: Its arguments.
        log: The file that gets all that is printed.
        cwd: The folder to work in.
        variables: Variables of the environment, beside those here.

    Returns:
        The process, which is one of :mod:`multiprocessing`.
    """
    environment = {**os.environ, **variables}
    process = _FORKS.Process(target=_call, args=(function, arguments, log, cwd, environment))
    process.start()
    return process


def _call(function, arguments, log, cwd, environment):
    with open(log, 'ab') as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    quicken(pytest.MonkeyPatch())
    function(*arguments)


def script(file, *words):
    """Run a script with words of a command line."""
    sys.argv = [str(file), *map(str, words)]
    runpy.run_path(str(file), run_name='__main__')


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
    """Calls a function in each of several processes that nobody watches."""

    def __init__(self, function, *arguments, cwd, number=2):
        self.store = open_store()
        self.logs = [cwd / f'log{rank}' for rank in range(number)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            variables = torchrun_variables(self.store, rank) if number > 1 else {}
            variables.update(CUDA_VISIBLE_DEVICES='')
            self.processes.append(start(function, *arguments, log=log, cwd=cwd, **variables))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, rank):
        self.processes[rank].join()
        return self.processes[rank].exitcode

    def log(self, rank):
        return self.logs[rank].read_text()

    def succeed(self):
        for rank in range(len(self.processes)):
            assert self.wait(rank) == 0, self.log(rank)
