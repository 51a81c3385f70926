"""A line that says what is compiled, and for how long so far, to whoever waits at a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["told"]

_AFTER = 3.0  # seconds; what takes less needs no line
_EVERY = 1.0
_one = threading.Lock()  # one line at a time


@contextmanager
def told(name: str, done: Callable[[], bool]) -> Iterator[None]:
    """Within it, a line on stderr tells that ``name`` is compiled, if that takes seconds.

    There is none where stderr is no terminal. A thread writes it, which ends with the block, or
    earlier, when ``done`` is true: a call that compiles runs what was compiled, too.

    Args:
        name: of the function.
        done: whether it is compiled.
    """
    if not _is_terminal(sys.stderr) or not _one.acquire(blocking=False):
        yield
        return
    ended = threading.Event()
    given = sys.stderr, name, done, ended
    thread = threading.Thread(target=_tell, args=given, name="parallax-compiling", daemon=True)
    with contextlib.suppress(RuntimeError):  # no more threads can be made: there is no line then
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join(_EVERY)  # no longer, for a terminal may be stopped
        _one.release()


def _is_terminal(stream: Any) -> bool:
    try:
        return stream is not None and bool(stream.isatty())
    except (AttributeError, ValueError):  # it is no file, or closed
        return False


def _tell(stream: Any, name: str, done: Callable[[], bool], ended: threading.Event) -> None:
    began, wait, width = time.monotonic(), _AFTER, 0
    try:
        while not ended.wait(wait) and not done():
            line = f"compiling {name:.40}: {time.monotonic() - began:.0f} s so far"
            stream.write(f"\r{line}")
            stream.flush()
            wait, width = _EVERY, len(line)
        if width:
            end = f"compiled {name:.40} in {time.monotonic() - began:.0f} s\n" if done() else ""
            stream.write(f"\r{'':{width}}\r{end}")
            stream.flush()
    except (OSError, ValueError):  # the terminal is gone
        pass
