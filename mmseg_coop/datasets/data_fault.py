"""The error for a file of the data that cannot be used."""

from __future__ import annotations


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


class DataFault(ValueError):
    r"""A file or folder of the data cannot be used; the message is one line that names it.

    A data loader raises an error of its workers anew, with their traceback for a message. Of that
    only the line that names the file is kept here: it says all there is to say.

    Args:
        message: What is wrong with which file.
        path: The file, of which `path` is what can be printed. Default: '', as after a worker
            process, where only the message is known.

    Example:
        >>> from mmseg_coop.datasets import DataFault
        >>> str(
        ...     DataFault(
        ...         'Caught DataFault in DataLoader worker process 0.\nOriginal Traceback '
        ...         '(most recent call last):\n...\nmmseg_coop.DataFault: image a.jpg is empty\n'
        ...     )
        ... )
        'image a.jpg is empty'
    """

    def __init__(self, message: str, *, path: str = '') -> None:
        if message.startswith('Caught '):
            message = message.rpartition(f'{type(self).__name__}: ')[2].strip()
        super().__init__(printable(message))
        self.path = printable(path)
