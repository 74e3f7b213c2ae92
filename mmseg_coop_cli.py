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
import difflib
import importlib.metadata
import importlib.util
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

#: What users call some tools; all are also called by their file's name.
SHORT_NAMES = dict(
    predict='image-demo', check='check-dataset', export='export-onnx', study='run-study'
)


class CoopError(Exception):
    """The family of all errors that the user can put right; :mod:`mmseg_coop.errors` has the rest.

    The message is one line with what was found, what is allowed and what to do.
    """


def did_you_mean(
    name: str, known: Iterable[str], form: str = '; did you mean {}?', *, sure: bool = False
) -> str:
    """Propose what is meant by a name that nothing has.

    Args:
        name: The name.
        known: Names that could be meant.
        form: How it is said. Default: ``'; did you mean {}?'``.
        sure: Whether the name has to be so alike that it can hardly be but a slip. Default: False.

    Returns:
        The proposal, or ``''`` if no known name is alike.

    Example:
        >>> did_you_mean('trian', ['test', 'train'])
        '; did you mean train?'
    """
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.85 if sure else 0.6)
    return form.format(*similar) if similar else ''


def key_value(text: str) -> str:
    """Take ``KEY=VALUE``, which :func:`mmseg_coop.config.load_config` reads once it is imported."""
    if not text.partition('=')[1]:
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    return text


def at_least(least: int) -> Callable[[str], int]:
    """Type of an argument that is a whole number of at least ``least``."""

    def read(text: str) -> int:
        if not text.lstrip('-').isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'has to be at least {least}, not {text}')
        return int(text)

    return read


def ending(*suffixes: str) -> Callable[[str], str]:
    """Type of an argument that names a file with one of these endings."""

    def read(text: str) -> str:
        if not text.endswith(suffixes):
            raise argparse.ArgumentTypeError(f'takes a {" or ".join(suffixes)} file, not {text!r}')
        return text

    return read


def size(text: str) -> tuple[int, int]:
    """Type of an argument that is a height and a width in pixels."""
    height, _, width = text.partition('x')
    if not all(side.isdecimal() and int(side) for side in (height, width)):
        raise argparse.ArgumentTypeError(f'takes HEIGHTxWIDTH such as 513x513, not {text!r}')
    return int(height), int(width)


#: Arguments that several tools take, each named and explained once.
ARGUMENTS: dict[str, dict[str, Any]] = {
    'config': dict(help='config file, or the name of one of the project'),
    'checkpoint': dict(help='checkpoint file'),
    'source': dict(help='weights to convert: .pth or .safetensors'),
    'destination': dict(help='file to write: .pth'),
    '--amp': dict(
        nargs='?',
        const='auto',
        choices=['auto', 'float16', 'bfloat16'],
        help='train with mixed precision; default, auto: bfloat16 on the CPU, float16 elsewhere',
    ),
    '--cfg-options': dict(
        nargs='+',
        type=key_value,
        metavar='KEY=VALUE',
        help='override values of the config, e.g. train_dataloader.batch_size=2 '
        'model.test_cfg.crop_size="(513,513)"',
    ),
    '--channels-last': dict(
        action='store_true', help='lay maps out with the channels last in memory'
    ),
    '--compile': dict(action='store_true', help='compile the networks with torch.compile'),
    '--data-faults': dict(
        choices=['stop', 'skip'],
        default='stop',
        help='what a file that cannot be used does: stop the run, or be left out and counted; '
        'default: stop',
    ),
    '--device': dict(help='cpu, cuda or cuda:N; default: cuda where there is one'),
    '--dtype': dict(
        choices=['bfloat16', 'float16'],
        help='compute in half precision, float16 on a GPU only; default: float32',
    ),
    '--force': dict(action='store_true', help='overwrite files that exist'),
    '--jobs': dict(
        type=at_least(1), default=1, metavar='N', help='processes that share the work; default: 1'
    ),
    '--json': dict(metavar='FILE', help='also write what was found to this file'),
    '--launcher': dict(
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how several processes were started; default: none',
    ),
    # torch.distributed.launch passes it as an argument, torchrun as an environment variable.
    '--local-rank': dict(type=int, default=0, help=argparse.SUPPRESS),
    '--max-images': dict(type=at_least(1), metavar='N', help='stop after N images; default: all'),
    '--opacity': dict(type=float, default=0.5, help='of the classes, 0 to 1; default: 0.5'),
    '--optimize': dict(
        action='store_true',
        help='fold batch norms and lay out memory as NHWC: the same but for rounding, in less time',
    ),
    '--out': dict(help='file or folder to write'),
    '--outputs': dict(
        nargs='+', metavar='NAME', help='outputs such as top or ensemble; default: all'
    ),
    '--repeats': dict(type=at_least(1), default=5, help='timed rounds; default: 5'),
    '--size': dict(
        type=size, metavar='HxW', help='size of the image; default: that of the training'
    ),
    '--split': dict(choices=['val', 'test'], default='test', help='data; default: %(default)s'),
    '--threads': dict(type=at_least(1), help="CPU threads; default: torch's choice"),
    '--work-dir': dict(help='where the run writes; default: work_dirs/NAME_OF_CONFIG'),
}
#: What the tools take that evaluate a checkpoint.
EVALUATION = (
    *('config', 'checkpoint', '--split', '--max-images', '--out', '--force'),
    *('--device', '--optimize', '--dtype', '--cfg-options'),
)
#: What converters of weights take alike.
CONVERSION = ('source', 'destination', '--force')
#: What the demos take alike.
PREDICTION = (
    *('config', 'checkpoint', '--outputs', '--device', '--optimize', '--dtype', '--opacity'),
    *('--force', '--cfg-options'),
)
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


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Import parts of the stack, without their words on what is not there.

    mmseg and mmpretrain print that OneDL's server is not installed, and mmcv warns that its ops are
    not: nothing that anybody has to know.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as said:
        warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformableAttention``')
        yield
    print(said.getvalue().replace('Could not import OneDL\n', ''), end='')


def program(main: Callable[[], None]) -> None:
    """Run a tool as a program: what the user can put right is one line, and exit code 1.

    That is :class:`CoopError`, what the operating system refuses, and an interrupt, which may say
    how to go on. Anything else is a fault of the program and keeps its traceback.

    Args:
        main: The tool.
    """
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # fails here rather than when Python ends
    except BrokenPipeError:  # nobody reads on, as in `mmseg-coop --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        sys.exit(f'\n{interrupt}' if interrupt.args else 'interrupted')
    except (CoopError, OSError) as error:
        sys.exit(f'error: {error}')


def find_mim() -> Path:
    """Find the folder that holds the installed configs, demo and tools."""
    spec = importlib.util.find_spec('mmseg_coop')  # finds it without importing it
    root = Path(spec.origin if spec and spec.origin else __file__).parent / '.mim'
    if not root.is_dir():
        raise FileNotFoundError(f'{root} does not exist; install the project: pip install -e .')
    return root


def find_tools() -> dict[str, Path]:
    """Find the installed tools by the names that users call them."""
    globs = ('tools/*.py', 'tools/*/*.py', 'demo/*.py')
    files = [file for glob in globs for file in sorted(find_mim().glob(glob))]
    tools = {file.stem.replace('_', '-'): file for file in files if file.stem[0] != '_'}
    return {**{short: tools[name] for short, name in SHORT_NAMES.items()}, **tools}


def load_tool(file: Path) -> ModuleType:
    """Import a tool by its path, as Python itself has a module ``test``.

    Args:
        file: The tool. Its folder is where Python looks first, as it does for a script's.

    Returns:
        The module. Another process that is to find what it defines has to import it alike.
    """
    name, folder = f'mmseg_coop_tool_{file.stem}', str(file.parent)
    if name not in sys.modules:
        if folder not in sys.path:
            sys.path.insert(0, folder)
        spec: Any = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def complete(command: str, word: str, before: str) -> list[str]:
    """Complete a word for bash: names of tools and, behind them, of configs.

    Args:
        command: The program as it was called.
        word: The word to complete.
        before: The word before it.

    Returns:
        What the word may become.
    """
    names = [*find_tools()]
    if before != command:
        files = before in names or (word and before[:1] != '-')
        names = [file.name for file in find_mim().glob('configs/[!_]*/*.py') if files]
    return sorted(name for name in names if name.startswith(word))


def run_tool(name: str, *words: str) -> None:
    """Run the tool that the first word of the command line names.

    Args:
        name: Its name, ``--help``, ``--version`` or ``--complete``.
        *words: The other words.
    """
    tools = find_tools()
    if name == '--complete':
        print(*complete(*words), sep='\n')
    elif name in ('-h', '--help'):
        print('usage: mmseg-coop TOOL …, where mmseg-coop TOOL --help says what it takes\n')
        for tool, file in tools.items():
            if tool in SHORT_NAMES.values():
                continue
            doc = ast.get_docstring(ast.parse(file.read_text('utf-8'))) or ''
            print(f'  {tool:26}{doc.splitlines()[0]}')
    elif name == '--version':
        print(f'mmseg-coop {importlib.metadata.version("mmseg-coop")}')
    elif name not in tools:
        hint = did_you_mean(name, tools, 'did you mean {}?') or 'see mmseg-coop --help'
        print(f'mmseg-coop: {name!r} is no tool; {hint}', file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv[0] = f'mmseg-coop {name}'  # what usage calls it
        load_tool(tools[name]).main(words)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mmseg-coop``.

    Args:
        argv: The command line without the program. Defaults to the process's.
    """
    program(lambda: run_tool(*((sys.argv[1:] if argv is None else argv) or ['--help'])))


if __name__ == '__main__':
    main()
