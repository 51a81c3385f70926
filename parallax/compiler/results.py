"""What the traces of a compiled function return, and what builds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from parallax._compat.opaque import real
from parallax.compiler.opening import write_builder
from parallax.compiler.writes import Written

__all__ = ["Loaded", "Result", "recorder", "written_builder"]


class Result(NamedTuple):
    """What one trace returns: its tokens, what it wrote to, and what builds it from items."""

    tokens: tuple[Any, ...]
    written: Written
    build: Callable[..., Any]


class Loaded(NamedTuple):
    """What was compiled in another process: what runs, its results, and the leaves it writes to."""

    run: Callable[..., Any]
    results: list[tuple[tuple[Any, ...], Written]]
    written: list[int]


def written_builder(tokens: tuple[Any, ...], written: Written) -> Callable[..., Any]:
    """What builds a result, and after it the contents of what was written to."""
    count = len(written.indices)
    return write_builder(((tuple, 1 + count), *tokens) if count else tokens)


def recorder(kept: list[Result]) -> Callable[..., int]:
    """A function that keeps the structure of results and what builds them; returns its number."""

    # Runs while dynamo traces, which puts the number into the graph: every trace has its own.
    @real
    def record(found: tuple[Any, ...], indices: Any, same: Any) -> int:
        written = Written(indices, same)
        for number, known in enumerate(kept):
            if known[:2] == (found, written):
                return number
        kept.append(Result(found, written, written_builder(found, written)))
        return len(kept) - 1

    return record
