"""A progress bar where tqdm is installed, plain lines where it is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

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
