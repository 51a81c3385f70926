"""Every public function and class with wrong arguments: is each refused, and how well?

    python -m tests.bad_input.every_call [-v] [room ...]

prints a table: per room how many wrong calls were *accepted*, ended in a *raw* error of torch or
Python, in one that *names* the argument, and in one that also says a *remedy*. With ``-v`` it
lists the calls that were accepted or ended raw, and with ``-vv`` all that say no remedy.
"""

from __future__ import annotations

import collections
import dis
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

import parallax
from tests.bad_input.wrong import VALUES, kind_of, wrong_for

OURS = str(Path(parallax.__file__).parent)
ORDER = ("accepted", "raw", "named", "remedy")

REMEDY = re.compile(
    r"\b([Ww]rite|[Gg]ive|[Pp]ass|[Uu]se|[Cc]all|[Hh]old|[Ii]nitialize|[Mm]ake|[Ss]et|[Rr]educe|"
    r"[Rr]eturn|[Tt]ake|[Ww]rap|[Ss]tep|[Cc]ompute|[Aa]ssign|[Dd]eclare|[Rr]egister|[Ii]nstall|"
    r"[Cc]hoose|[Ll]eave|[Ss]plit|[Cc]onvert|[Rr]eplace|[Ss]elect|[Pp]ut|[Bb]uild|[Mm]ove|[Aa]dd|"
    r"instead|such as|for example|one of|[Nn]ear misses|[Dd]id you mean)\b"
)
"""Words by which an error says what to write."""


@dataclass
class Subject:
    """A public function or class, and a call of it that is right."""

    name: str
    call: Callable[..., Any]
    given: Callable[[], dict[str, Any]] = dict
    kinds: dict[str, str] = field(default_factory=dict)
    after: Callable[[Any], Any] = lambda result: result
    """What must be done with the result until the argument is used."""


class Outcome(NamedTuple):
    """What became of one wrong call."""

    subject: str
    argument: str
    value: str
    rating: str
    message: str


def fixed(**given: Any) -> Callable[[], dict[str, Any]]:
    """The same arguments for each call."""
    return lambda: dict(given)


def parameters_of(call: Callable[..., Any]) -> list[inspect.Parameter]:
    found = list(inspect.signature(call).parameters.values())
    return [p for p in found if p.name != "self"]


def right(subject: Subject) -> Any:
    """Makes the call that is right."""
    return _made(subject, subject.given())


def _made(subject: Subject, given: dict[str, Any]) -> Any:
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters_of(subject.call))
    for parameter in parameters_of(subject.call):
        name = parameter.name
        if name not in given:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += given[name]
        elif parameter.kind is parameter.VAR_KEYWORD:
            keywords.update(given[name])
        elif parameter.kind is parameter.KEYWORD_ONLY or not (
            several or parameter.kind is parameter.POSITIONAL_ONLY
        ):
            keywords[name] = given[name]
        else:
            positional.append(given[name])
    extra = {name: value for name, value in given.items() if name == "extra_keyword"}
    return subject.after(subject.call(*positional, **keywords, **extra))


def walk(subject: Subject) -> Iterator[Outcome]:
    """Calls with one wrong argument each."""
    parameters = parameters_of(subject.call)
    for parameter in parameters:
        kind = subject.kinds.get(parameter.name) or kind_of(parameter.name, parameter.annotation)
        for value in wrong_for(kind):
            wrong = VALUES[value]()
            if parameter.kind is parameter.VAR_POSITIONAL:
                yield _outcome(subject, parameter.name, value, (*_rest(subject), wrong))
            elif parameter.kind is not parameter.VAR_KEYWORD:
                yield _outcome(subject, parameter.name, value, wrong)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        yield _outcome(subject, "extra_keyword", "number", 3)


def _rest(subject: Subject) -> tuple[Any, ...]:
    """What is given to ``*args``, but for the last one, which is replaced."""
    name = next(p.name for p in parameters_of(subject.call) if p.kind is p.VAR_POSITIONAL)
    return tuple(subject.given().get(name, ()))[:-1]


def _outcome(subject: Subject, argument: str, value: str, wrong: Any) -> Outcome:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _made(subject, {**subject.given(), argument: wrong})
    except Exception as error:
        rating = _rating(error, subject, argument)
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(subject.name, argument, value, rating, text)
    return Outcome(subject.name, argument, value, "accepted", "")


def _rating(error: Exception, subject: Subject, argument: str) -> str:
    message = str(error)
    short = subject.name.rsplit(".", maxsplit=1)[-1]
    if argument == "extra_keyword":  # Python itself says it well
        return "named" if argument in message else "raw"
    if not _raised_here(error):
        return "raw"
    # Not necessarily the argument's own name: a path, or the class of what came, tell as much.
    if not re.search(r"\w", message) or (short not in message and argument not in message):
        return "remedy" if REMEDY.search(message) and "got" in message else "named"
    return "remedy" if REMEDY.search(message) else "named"


def _raised_here(error: Exception) -> bool:
    """Whether a statement ``raise`` of ours made the error, and neither Python nor torch did."""
    frame, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    assert tb is not None
    code = frame.f_code
    if not code.co_filename.startswith(OURS):
        return False
    return dis.opname[code.co_code[tb.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")


def table(outcomes: Iterable[Outcome], worst: int = 12) -> str:
    """Per room how many calls have which rating, and the functions with most bad ones."""
    rooms: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    bad: collections.Counter[str] = collections.Counter()
    for outcome in outcomes:
        for room in (outcome.subject.split(".")[0], "all"):
            rooms[room][outcome.rating] += 1
        bad[outcome.subject] += outcome.rating in ("accepted", "raw")
    lines = [f"{'room':10}{'calls':>7}" + "".join(f"{rating:>16}" for rating in ORDER)]
    for room, counts in rooms.items():
        total = counts.total()
        cells = [f"{counts[r]:>7} ({counts[r] / total:6.1%})" for r in ORDER]
        lines.append(f"{room:10}{total:>7}{''.join(cells)}")
    most = [f"{name} {count}" for name, count in bad.most_common(worst) if count]
    return "\n".join([*lines, f"most accepted or raw: {', '.join(most)}"])


def shares(outcomes: Iterable[Outcome]) -> tuple[int, float, float]:
    """How many were accepted, the share of raw errors, and that of errors with a remedy."""
    counts = collections.Counter(outcome.rating for outcome in outcomes)
    total = counts.total()
    return counts["accepted"], counts["raw"] / total, counts["remedy"] / total


def main(arguments: list[str]) -> None:
    from tests.bad_input.calls import SUBJECTS

    torch.set_num_threads(1)
    asked = [word for word in arguments if not word.startswith("-")]
    chosen = [s for s in SUBJECTS if not asked or any(s.name.startswith(word) for word in asked)]
    outcomes = [outcome for subject in chosen for outcome in walk(subject)]
    shown: tuple[str, ...] = ("accepted", "raw") if "-v" in arguments else ()
    shown = ("accepted", "raw", "named") if "-vv" in arguments else shown
    for outcome in outcomes:
        if outcome.rating in shown:
            where = f"{outcome.subject}({outcome.argument}={outcome.value})"
            print(f"{outcome.rating:9}{where:60}{outcome.message[:150]}")
    print(table(outcomes))


if __name__ == "__main__":
    main(sys.argv[1:])
