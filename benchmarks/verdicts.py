"""What a record leaves to be done: limits missed, the floor out of reach, a peer ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.harness import Row
from benchmarks.records import Answer, Record, spread

# From here on a distance to the floor is one to explain.
FAR = 1.2


@dataclass(frozen=True)
class Verdict:
    """One row of one answer, and what is to be said about it."""

    answer: Answer
    row: Row
    says: str


def over(record: Record) -> Iterator[Verdict]:
    """The rows whose ratio exceeds their limit."""
    for answer in record.answers:
        for row in answer.rows:
            if row.limit is not None and row.ratio > row.limit:
                yield Verdict(answer, row, f"{row.ratio:.3f} ({row.limit:.2f})")


def far(record: Record) -> Iterator[Verdict]:
    """The rows of this library that are further than `FAR` from the floor."""
    for answer in record.answers:
        for row in answer.rows:
            if row.role == "ours" and row.floor is not None and row.floor > FAR:
                yield Verdict(answer, row, f"{row.floor:.2f}")


def behind(record: Record) -> Iterator[Verdict]:
    """The rows of this library that take longer than a peer's, beyond the noise."""
    for answer in record.answers:
        peers = _peers(answer)
        if not peers:
            continue
        best = min(peers, key=lambda row: row.ratio)
        for row in answer.rows:
            apart = row.low > best.high and row.ratio / best.ratio > spread(answer.rows)
            if row.role == "ours" and apart:
                yield Verdict(answer, row, f"{row.ratio / best.ratio:.2f} of {best.name}")


def _peers(answer: Answer) -> list[Row]:
    """The other libraries; the reference is one of them unless it is the floor itself."""
    has_floor = any(row.role == "floor" for row in answer.rows)
    yardstick = answer.rows[0].floor is not None and not has_floor
    peers = [row for row in answer.rows if row.role == "peer"]
    return peers if yardstick else [answer.rows[0], *peers]
