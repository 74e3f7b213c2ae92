"""What a user can put right: each error is one line with what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterable

from mmseg_coop_cli import CoopError, did_you_mean

__all__ = [
    'CheckpointError',
    'ConfigError',
    'CoopError',
    'DataError',
    'InputError',
    'NumericError',
    'did_you_mean',
    'first_few',
    'printable',
]


def printable(text: str) -> str:
    r"""Make a text, which may come from a file and hold anything, one line that is safe to print.

    Args:
        text: The text.

    Returns:
        The text with line feeds, control and format characters, all separators but the space, and
        bytes that are no characters as escape sequences.

    Example:
        >>> print(printable('M\udcfcnchen\n\x1b[2J'))
        M\udcfcnchen\n\x1b[2J
    """
    return ''.join(
        char if char.isprintable() else char.encode('unicode_escape').decode() for char in text
    )


def first_few(texts: Iterable[str], limit: int = 3, *, separator: str = ', ') -> str:
    """Join texts, and say of how many there are more.

    Args:
        texts: The texts.
        limit: How many are shown. Default: 3.
        separator: What stands between them. Default: ``', '``.

    Returns:
        One text.

    Example:
        >>> from mmseg_coop.errors import first_few
        >>> first_few('abcde')
        'a, b, c and 2 more'
    """
    texts = list(texts)
    more = f' and {len(texts) - limit} more' if len(texts) > limit else ''
    return separator.join(texts[:limit]) + more


class ConfigError(CoopError, ValueError):
    """A config cannot be meant as it is; the message names the key."""


class InputError(CoopError, ValueError):
    """A model gets what it was not built for; the message says what to change."""


class CheckpointError(CoopError, ValueError):
    """A file was refused: it carries code, is damaged or is no checkpoint."""


class NumericError(CoopError, RuntimeError):
    """Numbers of a training are not finite, so it stopped."""


class DataError(CoopError, ValueError):
    r"""A file or folder of the data cannot be used; the message is one line that names it.

    A data loader raises an error of its workers anew, with their traceback for a message. Of that
    only the line that names the file is kept here: it says all there is to say.

    Args:
        message: What is wrong with which file.
        path: The file, of which `path` is what can be printed. Default: '', as after a worker
            process, where only the message is known.

    Example:
        >>> from mmseg_coop.errors import DataError
        >>> str(
        ...     DataError(
        ...         'Caught DataError in DataLoader worker process 0.\nOriginal Traceback '
        ...         '(most recent call last):\n...\nDataError: image a.jpg is empty\n'
        ...     )
        ... )
        'image a.jpg is empty'
    """

    def __init__(self, message: str, *, path: str = '') -> None:
        if message.startswith('Caught '):
            message = message.rpartition(f'{type(self).__name__}: ')[2].strip()
        super().__init__(printable(message))
        self.path = printable(path)
