"""How wrong calls of public functions end; ``python -m tests.bad_input.every_call -v`` shows which.

No wrong call is accepted. The other limits are what holds today: a room that has become better
tightens its own.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest

import parallax
from parallax import bridge, debug, distributed, effects, func, io, nn, optim, random, tree
from parallax.optim import schedules
from tests.bad_input.calls import SUBJECTS, UNCALLED
from tests.bad_input.every_call import Outcome, Subject, right, shares, table, walk


class Limits(NamedTuple):
    """Of the wrong calls of one room, none of which may be accepted."""

    raw: float  # at most this share ends in an error of torch or Python
    remedy: float  # at least this share says what to write


LIMITS = {
    "core": Limits(0.0, 0.92),
    "tree": Limits(0.0, 0.7),
    "func": Limits(0.0, 0.88),
    "random": Limits(0.0, 0.96),
    "effects": Limits(0.0, 0.86),
    "optim": Limits(0.001, 0.92),
    "schedules": Limits(0.0, 0.92),
    "bridge": Limits(0.0, 0.91),
    "io": Limits(0.0, 0.87),
    "distributed": Limits(0.0, 0.89),
    "debug": Limits(0.0, 0.83),
    "nn": Limits(0.0, 0.93),
}

PREFIX = {"": "core.", "optim.schedules": "schedules."}


@cache
def outcomes(room: str) -> list[Outcome]:
    found = [subject for subject in SUBJECTS if subject.name.startswith(f"{room}.")]
    return [outcome for subject in found for outcome in walk(subject)]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_the_right_call_is_right(subject: Subject) -> None:
    right(subject)


@pytest.mark.parametrize("room", LIMITS)
def test_wrong_calls_are_refused_and_explained(room: str) -> None:
    accepted, raw, remedy = shares(outcomes(room))
    limits = LIMITS[room]
    within = accepted == 0 and raw <= limits.raw and remedy >= limits.remedy
    assert within, f"accepted=0, {limits} does not hold:\n{table(outcomes(room))}"


def test_every_public_name_is_called() -> None:
    rooms: list[Any] = [
        parallax,
        tree,
        func,
        random,
        effects,
        optim,
        schedules,
        bridge,
        io,
        distributed,
    ]
    rooms.append(debug)
    called = {subject.name for subject in SUBJECTS}
    missing = []
    for room in [*rooms, nn]:
        place = room.__name__.removeprefix("parallax").removeprefix(".")
        for name in room.__all__:
            full = f"{PREFIX.get(place, f'{place}.')}{name}"
            known = full in called or full.removeprefix("core.") in UNCALLED
            if callable(getattr(room, name)) and not known:
                missing.append(full)
    assert not missing, f"add to tests/bad_input/calls.py a right call of {', '.join(missing)}"
