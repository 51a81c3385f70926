"""Binary file objects in the place of a path: ``io.BytesIO``, an open file, an upload."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["content", "is_stream", "named", "write"]


def is_stream(path: Any) -> bool:
    """Whether something is a file object, and no path."""
    if isinstance(path, str | os.PathLike):
        return False
    return hasattr(path, "read") or hasattr(path, "write")


def named(file: Any) -> str:
    """How errors call a file object."""
    name = getattr(file, "name", None)
    kind = type(file).__name__
    return f"the {kind} of {name}" if isinstance(name, str) else f"the {kind}"


def content(file: Any) -> bytes:
    """What a file object holds from where it is now.

    Raises:
        TypeError: if it cannot be read, or gives text.
        ValueError: if there is nothing more in it.
    """
    if not hasattr(file, "read"):
        raise TypeError(f"{named(file)} cannot be read. Open it with mode 'rb'")
    data = file.read()
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"{named(file)} gives {type(data).__name__}, expected bytes. Open it with mode 'rb'"
        )
    if not data:
        raise ValueError(f"{named(file)} is at its end. Go back to where it begins: file.seek(0)")
    return bytes(data)


def write(file: Any, data: Any) -> None:
    """Writes bytes into a file object, from where it is now.

    Raises:
        TypeError: if it cannot be written, or takes text.
    """
    if not hasattr(file, "write"):
        raise TypeError(f"{named(file)} cannot be written. Open it with mode 'wb'")
    try:
        taken = file.write(data)
    except TypeError as error:
        raise TypeError(f"{named(file)} takes no bytes: {error}. Open it with mode 'wb'") from None
    if isinstance(taken, int) and taken < len(data):
        raise OSError(f"{named(file)} took {taken} of {len(data)} bytes")
