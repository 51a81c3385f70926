"""The page of results: a record as Markdown, ratios only, since seconds are one machine's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from benchmarks import verdicts
from benchmarks.harness import Row
from benchmarks.records import Answer, Curve, Record, spread
from benchmarks.report import number
from benchmarks.verdicts import Verdict

_METHOD = """\
Every number is a ratio: a time divided by that of the reference, which is the first row of its
table or is named in its head. Both are measured interleaved; a cell has the median and the
quartiles. *noise* is how far the reference differs from itself when it is timed twice. *floor* is
the ratio to the same result by straight-line calls of torch, or by a flat list where there is
nothing to compute. One thread; where torch would use more, a column has the result with all of
them. The last sections list what is still slow.
"""


def page(record: Record) -> str:
    """The whole record: where it was made, limits missed, every table, and what remains."""
    about = record.about
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items() if v != "absent")
    machine = about["machine"]
    lines = [
        "# Results",
        "",
        f"`python -m benchmarks`, {about['date'][:10]}, in {about['seconds']} s.",
        f"{machine['system']}, {machine['processors']} processors, {machine['device']}.",
        f"{versions}.",
        "",
        _METHOD,
        *_over(list(verdicts.over(record))),
    ]
    parts = [answer.part for answer in record.answers] + [curve.part for curve in record.curves]
    for part in dict.fromkeys(parts):
        lines += [f"## {part}", ""]
        lines += _tables([answer for answer in record.answers if answer.part == part])
        for curve in record.curves:
            if curve.part == part:
                lines += _curve(curve)
    lines += _remaining("Behind a peer", verdicts.behind(record))
    lines += _remaining(f"Further than {verdicts.FAR} from the floor", verdicts.far(record))
    return "\n".join(lines)


def _over(found: Sequence[Verdict]) -> Iterator[str]:
    """The limits that were missed; what is told of a floor or a peer is no reason for that."""
    yield f"## Over their limit: {len(found)}"
    yield ""
    yield from [_verdict(each) for each in found]
    yield ""


def _remaining(title: str, found: Iterable[Verdict]) -> Iterator[str]:
    """What there is of a kind, under the reason that is given for it."""
    reasons: dict[str, list[str]] = {}
    for verdict in found:
        reasons.setdefault(verdict.answer.remains, []).append(_verdict(verdict))
    yield f"## {title}: {sum(map(len, reasons.values()))}"
    yield ""
    for reason, rows in reasons.items():
        if reason:
            yield f"{reason}:"
            yield ""
        yield from rows
        yield ""


def _verdict(verdict: Verdict) -> str:
    answer = verdict.answer
    threads = ", all threads" if answer.all_threads else ""
    return f"- {answer.part}: {answer.question}{threads}: {verdict.row.name} {verdict.says}"


def _tables(answers: Sequence[Answer]) -> Iterator[str]:
    """One table for answers of the same form, and a table for every other answer."""
    on_all = {answer.question: answer for answer in answers if answer.all_threads}
    for _, alike in groupby((a for a in answers if not a.all_threads), key=_form):
        family = list(alike)
        if len(family) > 1:
            yield from _family(family, on_all)
        else:
            yield from _alone(family[0], on_all.get(family[0].question))


def _form(answer: Answer) -> object:
    """What answers that fit in one table share; only those fit that have one row of ours."""
    names = [(row.role, row.name) for row in answer.rows if row.role != "floor"]
    ours = sum(role == "ours" for role, _ in names)
    return names if ours == 1 and not answer.absent else answer.question


def _family(answers: Sequence[Answer], on_all: dict[str, Answer]) -> Iterator[str]:
    first = answers[0]
    reference = first.rows[0].name
    named = [row for row in first.rows if row.role in ("ours", "peer")]
    floors = any(row.floor is not None for answer in answers for row in answer.rows)
    limits = any(row.limit is not None for answer in answers for row in answer.rows)
    threads = any(answer.question in on_all for answer in answers)
    yield from _head(
        f"to {reference}",
        *[row.name for row in named],
        *["all threads"] * threads,
        *["floor"] * floors,
        *["limit"] * limits,
        "noise",
    )
    for answer in answers:
        rows = {row.name: row for row in answer.rows}
        ours = next(row for row in answer.rows if row.role == "ours")
        yield _line(
            answer.question,
            *[_ratio(rows[row.name]) for row in named],
            *[_same_row(ours, on_all.get(answer.question))] * threads,
            *[number(ours.floor)] * floors,
            *[_limit(ours)] * limits,
            _noise(answer),
        )
    yield ""


def _alone(answer: Answer, on_all: Answer | None) -> Iterator[str]:
    floors = any(row.floor is not None for row in answer.rows)
    limits = any(row.limit is not None for row in answer.rows)
    yield f"**{answer.question}** (noise {_noise(answer)})"
    yield ""
    yield from _head(
        "",
        "ratio",
        *["all threads"] * bool(on_all),
        *["floor"] * floors,
        *["limit"] * limits,
    )
    for row in answer.rows:
        if row.role != "noise":
            yield _line(
                row.name,
                _ratio(row),
                *[_same_row(row, on_all)] * bool(on_all),
                *[number(row.floor)] * floors,
                *[_limit(row)] * limits,
            )
    yield from (f"| {name} | absent: {reason} |" for name, reason in answer.absent.items())
    yield ""


def _curve(curve: Curve) -> Iterator[str]:
    yield f"**{curve.name}**"
    yield ""
    if curve.powers:
        yield from _head("", "exponent", "from", "to")
        for name, exponent in curve.exponents().items():
            (first, _), *_, (last, _) = curve.series[name]
            yield _line(name, f"{exponent:.2f}", f"{first:,.0f}", f"{last:,.0f}")
    else:
        yield from _head("", curve.axis, curve.unit)
        for name, (x, y) in curve.ends().items():
            yield _line(name, f"{x:,.0f}", f"{y:.4g}")
    yield ""


def _head(*names: str) -> Iterator[str]:
    yield _line(*names)
    yield "|" + "---|" * len(names)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _ratio(row: Row) -> str:
    return f"{row.ratio:.3f} ({row.low:.3f}-{row.high:.3f})"


def _same_row(row: Row, other: Answer | None) -> str:
    """The ratio of the row of the same name in another answer."""
    return next((_ratio(r) for r in other.rows if r.name == row.name), "") if other else ""


def _limit(row: Row) -> str:
    return f"{number(row.limit)} {row.verdict}".strip()


def _noise(answer: Answer) -> str:
    return f"{spread(answer.rows) - 1:.0%}"
