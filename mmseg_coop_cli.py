"""The command line: what all tools share before anything slow is imported.

It stands beside the package because importing that imports torch and mmseg, which takes seconds;
``--help`` and a mistyped option need neither. A tool is a file with ``main(argv=None)``: it parses
with :class:`Parser`, then imports what does the work. As a function it raises, as a program it ends
with one line. ``mmseg-coop NAME …`` starts the tool of that name, wherever it is installed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

#: What users call some tools; all are also called by their file's name.
SHORT_NAMES = dict(predict='image-demo', check='check-dataset', export='export-onnx')


class CoopError(Exception):
    """The family of all errors that the user can put right; :mod:`mmseg_coop.errors` has the rest.

    The message is one line with what was found, what is allowed and what to do.
    """


def key_value(text: str) -> str:
    """Take ``KEY=VALUE``, which :func:`mmseg_coop.config.load_config` reads once it is imported."""
    if not text.partition('=')[1]:
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    return text


#: Arguments that several tools take, each named and explained once.
ARGUMENTS: dict[str, dict[str, Any]] = {
    'config': dict(help='config file'),
    'checkpoint': dict(help='checkpoint file'),
    '--cfg-options': dict(
        nargs='+',
        type=key_value,
        metavar='KEY=VALUE',
        help='override values of the config, e.g. train_dataloader.batch_size=2 '
        'model.test_cfg.crop_size="(513,513)"',
    ),
    '--data-faults': dict(
        choices=['stop', 'skip'],
        default='stop',
        help='what a file that cannot be used does: stop the run, or be left out and counted; '
        'default: stop',
    ),
    '--device': dict(help='cpu, cuda or cuda:N; default: cuda where there is one'),
    '--force': dict(action='store_true', help='overwrite files that exist'),
    '--launcher': dict(
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how several processes were started; default: none',
    ),
    # torch.distributed.launch passes it as an argument, torchrun as an environment variable.
    '--local-rank': dict(type=int, default=0, help=argparse.SUPPRESS),
    '--out': dict(help='file or folder to write'),
    '--outputs': dict(
        nargs='+', metavar='NAME', help='outputs such as top or ensemble; default: all'
    ),
    '--work-dir': dict(help='where the run writes; default: work_dirs/NAME_OF_CONFIG'),
}
#: What train and test take alike.
RUN = ('--work-dir', '--cfg-options', '--launcher', '--data-faults', '--local-rank')


class Parser(argparse.ArgumentParser):
    """Parser of a tool.

    Args:
        doc: The tool's docstring, which ``--help`` prints.
    """

    def __init__(self, doc: str | None) -> None:
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def share(self, *names: str, **changes: Any) -> None:
        """Add arguments of :data:`ARGUMENTS` by their names.

        Args:
            *names: The names.
            **changes: What is different in this tool, such as ``help``.
        """
        for name in names:
            flags = (name, '--local_rank') if name == '--local-rank' else (name,)
            self.add_argument(*flags, **{**ARGUMENTS[name], **changes})


def program(main: Callable[[], None]) -> None:
    """Run a tool as a program: what the user can put right is one line, and exit code 1.

    That is :class:`CoopError` and what the operating system refuses. Anything else is a fault of
    the program and keeps its traceback.

    Args:
        main: The tool.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('interrupted')
    except (CoopError, OSError) as error:
        sys.exit(f'error: {error}')


@contextlib.contextmanager
def short_errors() -> Iterator[None]:
    """Until every tool is called by :func:`program`."""
    try:
        yield
    except (CoopError, OSError, ValueError, KeyError) as error:
        sys.exit(f'error: {error.args[0] if isinstance(error, KeyError) else error}')


def find_tools() -> dict[str, Path]:
    """Find the installed tools by the names that users call them."""
    spec = importlib.util.find_spec('mmseg_coop')  # finds it without importing it
    root = Path(spec.origin if spec and spec.origin else __file__).parent / '.mim'
    if not root.is_dir():
        sys.exit(f'error: {root} does not exist; install the project: pip install -e .')
    files = [
        file for glob in ('tools/*.py', 'tools/*/*.py', 'demo/*.py') for file in root.glob(glob)
    ]
    return {f.stem.replace('_', '-'): f for f in sorted(files) if f.stem[0] != '_'}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tool that the command line names.

    Args:
        argv: The command line without the program. Defaults to the process's.
    """
    tools = find_tools()
    names = {**{short: tools[name] for short, name in SHORT_NAMES.items()}, **tools}
    name, *rest = (sys.argv[1:] if argv is None else argv) or ['--help']
    if name in ('-h', '--help'):
        print('usage: mmseg-coop TOOL …, where mmseg-coop TOOL --help says what it takes\n')
        for tool, file in names.items():
            doc = ast.get_docstring(ast.parse(file.read_text('utf-8'))) or ''
            print(f'  {tool:22}{doc.splitlines()[0]}')
    elif name not in names:
        print(f'mmseg-coop: {name!r} is no tool; choose from {", ".join(names)}', file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv[0] = f'mmseg-coop {name}'  # what usage calls it
        sys.path.insert(0, str(names[name].parent))  # where Python looks first for a script's own
        program(lambda: runpy.run_path(str(names[name]))['main'](rest))


if __name__ == '__main__':
    main()
