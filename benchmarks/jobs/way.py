"""One way to take a job's steps: built once, checked by its first losses, then timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Candidate, Question
from benchmarks.memory import live_bytes, peak_bytes

Step = Callable[[], Tensor]

CHECKED = 3


def race(
    name: str,
    ways: Mapping[str, Callable[[], Step]],
    limits: Mapping[str, float] | None = None,
    *,
    rtol: float = 2e-3,
    absent: Mapping[str, str] | None = None,
    remains: str = "",
) -> Sequence[Question]:
    """The questions of one job at one size: time and peak memory of a step.

    Args:
        name: what the steps do.
        ways: how to make the step of each way; the first is the reference, and those of this
            library begin with "parallax".
        limits: the ratio to the reference that a way must not exceed.
        rtol: how far losses may be from those of the reference.
        absent: peers that are not installed, with the reason.
        remains: why a way stays behind.

    Raises:
        AssertionError: if the first losses of a way differ.
    """
    steps: dict[str, Step] = {}
    losses: dict[str, list[float]] = {}
    held: dict[str, int] = {}
    for way, make in ways.items():
        before = live_bytes()
        steps[way] = step = make()
        losses[way] = [float(step()) for _ in range(CHECKED)]
        held[way] = live_bytes() - before
    first, *others = steps
    for way in others:
        message = f"the losses of {way} are {losses[way]}, and of {first} {losses[first]}"
        torch.testing.assert_close(losses[way], losses[first], rtol=rtol, atol=1e-4, msg=message)
    limits = limits or {}

    def question(name: str, made: Callable[[str, Step], Candidate], **more: Any) -> Question:
        ours = [made(way, steps[way]) for way in others if way.startswith("parallax")]
        theirs = [made(way, steps[way]) for way in others if not way.startswith("parallax")]
        return Question(name, made(first, steps[first]), ours, theirs, **more)

    return [
        question(
            name,
            lambda way, step: Candidate(way, step, limit=limits.get(way)),
            absent=absent or {},
            remains=remains,
        ),
        question(
            f"peak memory (1 MB as 1 ms): {name}",
            lambda way, step: _peak(way, step, held[way]),
            most_rounds=5,
        ),
    ]


def _peak(way: str, step: Step, held: int) -> Candidate:
    """What a way holds between two steps, and at most beside it during one."""

    def seconds() -> float:
        return (held + peak_bytes(step, before=step)) * 1e-9

    return Candidate(way, seconds, self_timed=True)
