"""Progress of long work: a bar where tqdm is installed, and how long one call has taken so far."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["progress", "waiting"]

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 2.0


def progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Pass items on, showing on standard error how many have gone by.

    Args:
        items: What to pass on.
        total: How many there will be.
        label: What they are, in a word or two.

    Yields:
        The items, unchanged.

    Example:
        >>> list(progress("ab", total=2, label="letters"))
        ['a', 'b']
    """
    try:
        from tqdm import tqdm
    except ImportError:
        yield from _lines(items, total, label)
    else:
        yield from tqdm(items, total=total, desc=label, leave=False)


def _lines(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Print a line of progress every few seconds."""
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{label}: {done}/{total}", file=sys.stderr)
        yield item


@contextmanager
def waiting(label: str, shown: bool = True) -> Iterator[None]:
    """Says on a terminal, every second, how long the code inside has taken so far.

    Args:
        label: what it does, such as "compiling".
        shown: whether to say anything: only the first call of a compiled function is long.

    Example:
        >>> with waiting("compiling"):
        ...     total = sum(range(10))
        >>> total
        45
    """
    if not (shown and sys.stderr.isatty()):
        yield
        return
    start, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(1.0):
            line = f"\r{label}: {time.monotonic() - start:.0f} s"
            print(line, end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        print(f"\r{' ' * (len(label) + 10)}\r", end="", file=sys.stderr, flush=True)
