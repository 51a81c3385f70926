"""What the traces of a compiled function return, and what builds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from parallax._compat.opaque import real
from parallax.compiler.opening import write_builder
from parallax.compiler.packing import Same
from parallax.compiler.writes import Written

__all__ = ["Loaded", "Result", "recorder"]


class Result(NamedTuple):
    """What one trace returns: its tokens, what it wrote to, and what builds it from items.

    ``names_argument`` tells whether a list or dict stands in two places, of which one may be an
    argument; the builder is then given those of the arguments.
    """

    tokens: tuple[Any, ...]
    written: Written
    build: Callable[..., Any]
    names_argument: bool

    @classmethod
    def of(cls, tokens: tuple[Any, ...], written: Written) -> Result:
        """The result of these tokens, and after it the contents of what was written to."""
        count = len(written.indices)
        whole = ((tuple, 1 + count), *tokens) if count else tokens
        names = any([token[0] is Same for token in tokens if type(token) is tuple])
        return cls(tokens, written, write_builder(whole), names)


class Loaded(NamedTuple):
    """What was compiled in another process: what runs, its results, and the leaves it writes to."""

    run: Callable[..., Any]
    results: list[tuple[tuple[Any, ...], Written]]
    written: list[int]


def recorder(kept: list[Result]) -> Callable[..., int]:
    """A function that keeps the structure of results and what builds them; returns its number."""

    # Runs while dynamo traces, which puts the number into the graph: every trace has its own.
    @real
    def record(found: tuple[Any, ...], indices: Any, same: Any) -> int:
        written = Written(indices, same)
        for number, known in enumerate(kept):
            if known[:2] == (found, written):
                return number
        kept.append(Result.of(found, written))
        return len(kept) - 1

    return record
