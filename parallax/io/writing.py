"""Writing a file whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["not_written", "replacing", "sync_folder"]

_live: set[str] = set()
"""The temporary files that this process is writing."""


@contextmanager
def replacing(path: Path, family: str | None = None) -> Iterator[Path]:
    """A temporary path beside ``path``; what is written there takes its place at the end.

    The data are on the disk before the name is: whatever happens, ``path`` is the old file or
    the new one, with the permissions of the old one. After an error the temporary file is gone
    and the old one as it was. What processes that were killed left behind for ``path`` is removed.

    Args:
        path: the file to be; a symbolic link is followed.
        family: what files have in common of which each removes what was left behind for another;
            by default the name of this one.

    Yields:
        The path to write to.

    Raises:
        OSError: if the disk refuses, for instance because it is full.
    """
    target = Path(os.path.realpath(path))
    start = _start(family or target.name)
    _remove_left(target.parent, start)
    temporary = target.with_name(f"{start}{os.getpid()}.{secrets.token_hex(6)}.tmp")
    _live.add(temporary.name)
    try:
        with _locked(temporary):
            yield temporary
            with suppress(FileNotFoundError):  # there may be no old file
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            _sync(temporary, os.O_RDWR)
            os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    finally:
        _live.discard(temporary.name)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Has the names in a folder on the disk, where the system can do that."""
    if hasattr(os, "O_DIRECTORY"):
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- what killed processes left -------------------------------------------------------------------


def _start(name: str) -> str:
    """What the temporary files for a name begin with on this machine.

    It is short whatever the name is: one may have no more than 255 bytes.
    """
    both = f"{socket.gethostname()}/{name}"
    return f".{hashlib.sha256(os.fsencode(both)).hexdigest()[:16]}."


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A new file, locked as long as this process writes it: the lock of a killed one is gone."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        if sys.platform != "win32":
            with suppress(OSError):  # a file system without locks: the process's number must do
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_left(folder: Path, start: str) -> None:
    """Removes temporary files of this machine's processes that are no more."""
    if sys.platform == "win32":  # where asking for a process would end it
        return
    with suppress(OSError):  # a folder that cannot be listed can still be written
        for name in os.listdir(folder):
            if name.startswith(start) and name.endswith(".tmp") and name not in _live:
                number = name.removeprefix(start).partition(".")[0]
                if number.isdigit() and not _runs(int(number)):
                    _remove_unlocked(folder / name)


def _runs(number: int) -> bool:
    """Whether another process of this number runs."""
    if number == os.getpid():  # not another one: its number was used before
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is someone else's, or no number of a process
        return True
    return True


def _remove_unlocked(path: Path) -> None:
    if sys.platform == "win32":
        return
    with suppress(OSError):  # somebody else was faster, or may not
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)


def not_written(target: Path, error: Exception) -> OSError:
    """The error for a file that could not be written."""
    return OSError(f"{target} could not be written: {error}. What was there before is intact")
