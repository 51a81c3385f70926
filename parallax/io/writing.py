"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; what is written there takes its place at the end.

    The data are on the disk before the name is: whatever happens, ``path`` is the old file or
    the new one, with the permissions of the old one. After an error the temporary file is gone
    and the old one as it was.

    Args:
        path: the file to be; a symbolic link is followed.

    Yields:
        The path to write to.

    Raises:
        OSError: if the disk refuses, for instance because it is full.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        with suppress(FileNotFoundError):  # there may be no old file
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if hasattr(os, "O_DIRECTORY"):
        _sync(target.parent, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
