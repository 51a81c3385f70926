"""Time candidates against a reference, fairly: interleaved, in random order, as ratios per round.

A file of this package that defines `questions(quick)` is picked up by the runner:

    def questions(quick: bool) -> Iterator[Question]:
        yield Question(
            "sum of 1,000 numbers",
            Candidate("builtin sum", lambda: sum(numbers)),
            [Candidate("loop", lambda: loop(numbers), limit=3.0)],
            peers=[Candidate("numpy", lambda: array.sum())],
            check=equal,
        )

Machines are noisy and drift, so a ratio is taken inside each round, where both sides met the same
weather, and the median of the rounds is reported with its inter-quartile range. The reference is
timed twice in every round; the row it gives of itself shows what difference means nothing here.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import repeat
from time import perf_counter
from typing import Any, Literal

Role = Literal["reference", "noise", "ours", "peer", "floor"]

NOISE = "the reference again"

_MOST_CALLS = 100_000
# With a setup every call needs an argument of its own, all alive at once.
_MOST_SETUPS = 100


@dataclass(frozen=True)
class Candidate:
    """One way to do the thing.

    Attributes:
        name: What the row is called.
        run: The call to time. It gets what `setup` returned, if there is a setup.
        setup: Makes a fresh argument for every call, outside the clock.
        per: How many equal pieces of work a call does; times and ratios are of one piece.
        limit: The ratio to the reference that must not be exceeded.
        self_timed: `run` measures itself and returns seconds.
    """

    name: str
    run: Callable[..., Any]
    setup: Callable[[], object] | None = None
    per: int = 1
    limit: float | None = None
    self_timed: bool = False


@dataclass(frozen=True)
class Question:
    """A reference and the candidates that are measured against it.

    Attributes:
        name: What is asked, in a few words.
        reference: Whose time is 1.
        candidates: What is compared with it: the ways of this library.
        peers: The ways of others.
        check: Called with the reference's result and a candidate's, before anything is timed;
            raises where they do not agree.
        context: Entered around the checks and the timing.
        most_rounds: Fewer rounds than usual, for calls that take seconds.
        floor: The physical limit: the same result by the calls that cannot be left out, and
            nothing else. How far each row is from it is a column of the table. It may be the
            reference itself.
        remains: Why a candidate stays further than 1.2 from the floor, or behind a peer.
        absent: Peers that are not here to compete, with the reason.
        all_threads: Ask once more with all of torch's threads, where limits do not apply.
    """

    name: str
    reference: Candidate
    candidates: Sequence[Candidate]
    peers: Sequence[Candidate] = ()
    check: Callable[[Any, Any], object] | None = None
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    most_rounds: int = sys.maxsize
    floor: Candidate | None = None
    remains: str = ""
    absent: Mapping[str, str] = field(default_factory=dict)
    all_threads: bool = False

    def parts(self) -> list[tuple[Role, Candidate]]:
        """Everything that is timed, and as what."""
        floor = [] if self.floor is None or self.floor is self.reference else [self.floor]
        groups: list[tuple[Role, Sequence[Candidate]]] = [
            ("reference", [self.reference]),
            ("noise", [replace(self.reference, name=NOISE)]),
            ("ours", self.candidates),
            ("peer", self.peers),
            ("floor", floor),
        ]
        return [(role, candidate) for role, group in groups for candidate in group]


@dataclass(frozen=True)
class Row:
    """One line of the answer; ratios are to the reference, `low` and `high` are their quartiles.

    `floor` is the distance to the physical limit: the ratio divided by that of the floor.
    """

    role: Role
    name: str
    seconds: float
    ratio: float
    low: float
    high: float
    limit: float | None = None
    floor: float | None = None

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return ""
        return "ok" if self.ratio <= self.limit else "OVER"


@dataclass(frozen=True)
class Effort:
    """How long to look.

    Attributes:
        rounds: How often every candidate is timed, unless time runs out.
        slice_seconds: What one timing should take.
        question_seconds: After this long the round that runs is the last, if there were enough
            for a median.
    """

    rounds: int
    slice_seconds: float
    question_seconds: float


# For CI, for a second look with all threads, and for the page.
QUICK = Effort(rounds=3, slice_seconds=0.001, question_seconds=1.0)
SHORT = Effort(rounds=5, slice_seconds=0.008, question_seconds=0.8)
FULL = Effort(rounds=31, slice_seconds=0.008, question_seconds=1.5)

_FEWEST_ROUNDS = 5


def from_floor(questions: Iterable[Question]) -> Iterator[Question]:
    """The same questions, whose reference is the floor where they name no other."""
    for question in questions:
        yield replace(question, floor=question.floor or question.reference)


Watch = Callable[[Iterable[int], int, str], Iterable[int]]


def measure(question: Question, effort: Effort, watch: Watch) -> list[Row]:
    """Check the candidates, warm them up, time them, and sum up.

    Args:
        question: What to measure.
        effort: How long.
        watch: Wraps the rounds, to show progress.

    Returns:
        The reference's row, its noise row, one row for every candidate, and the floor's.
    """
    parts = question.parts()
    candidates = [candidate for _, candidate in parts]
    with question.context():
        _check(question)
        calls = [_calls_per_slice(candidate, effort) for candidate in candidates]
        times: list[list[float]] = [[] for _ in candidates]
        rounds = min(effort.rounds, question.most_rounds)
        end = perf_counter() + effort.question_seconds
        for done in watch(range(rounds), rounds, question.name):
            for i in random.sample(range(len(candidates)), len(candidates)):
                times[i].append(_slice(candidates[i], calls[i]) / calls[i] / candidates[i].per)
            if perf_counter() > end and done + 1 >= _FEWEST_ROUNDS:
                break
    rows = [_row(role, c, t, times[0]) for (role, c), t in zip(parts, times, strict=True)]
    if question.floor is None:
        return rows
    limit = rows[-1].ratio if rows[-1].role == "floor" else 1.0
    return [replace(row, floor=row.ratio / limit) for row in rows]


def _check(question: Question) -> None:
    if question.check is None:
        return
    expected = _once(question.reference)
    for role, candidate in question.parts():
        if role in ("reference", "noise") or candidate.self_timed:
            continue  # what times itself returns seconds, and checks its result itself
        try:
            question.check(expected, _once(candidate))
        except AssertionError as error:
            where = f"{question.name}: {candidate.name!r} disagrees with the reference"
            raise AssertionError(f"{where}: {error}") from error


def _once(candidate: Candidate) -> object:
    return candidate.run(candidate.setup()) if candidate.setup else candidate.run()


def _calls_per_slice(candidate: Candidate, effort: Effort) -> int:
    """Warm up, and find how many calls fill a slice; what times itself sees to that itself."""
    if candidate.self_timed:
        return 1
    most = _MOST_SETUPS if candidate.setup else _MOST_CALLS
    calls = 1
    while calls < most:
        seconds = _slice(candidate, calls)
        if seconds >= effort.slice_seconds:
            break
        calls = min(most, 1 + int(calls * min(10.0, effort.slice_seconds / max(seconds, 1e-9))))
    return calls


def _slice(candidate: Candidate, calls: int) -> float:
    """Time a number of calls, with the garbage collector at rest.

    A call goes before them that is not timed: the last candidate has filled the caches with its
    own code and data, which is no property of this one.
    """
    run = candidate.run
    if candidate.self_timed:
        seconds: float = sum(run() for _ in range(calls))
        return seconds
    arguments = [candidate.setup() for _ in range(calls)] if candidate.setup else None
    _once(candidate)
    gc.disable()
    try:
        start = perf_counter()
        if arguments is None:
            for _ in repeat(None, calls):
                run()
        else:
            for argument in arguments:
                run(argument)
        return perf_counter() - start
    finally:
        gc.enable()


def _row(role: Role, candidate: Candidate, times: list[float], reference: list[float]) -> Row:
    ratios = [mine / theirs for mine, theirs in zip(times, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    seconds = statistics.median(times)
    return Row(role, candidate.name, seconds, middle, low, high, candidate.limit)
