"""Files that are going to be written."""

from __future__ import annotations

from pathlib import Path


def refuse_existing(*files: str | Path | None, force: bool) -> None:
    """Refuse to replace files.

    Args:
        *files: Files that are going to be written; None is passed over.
        force: Whether they may be there.

    Raises:
        FileExistsError: One of them is there, or is a folder.
    """
    for file in files:
        if file is not None and (Path(file).is_dir() or (Path(file).exists() and not force)):
            raise FileExistsError(f'{str(file)!r} exists; name another place, or add --force.')
