"""Say what was measured: tables on the screen, and a page of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from benchmarks.harness import NOISE, Row
from benchmarks.records import Answer, Curve, Record, spread


def table(answer: Answer) -> str:
    """Lay out an answer as text: a heading and a line for every row."""
    width = max(len(row.name) for row in answer.rows)
    head = f"{'':{width}}  {'time':>9}  {'ratio':>7}  {'quartiles':^15}  {'floor':>6}  {'limit':>6}"
    lines = [f"\n{answer.part}: {answer.question}", head.rstrip()]
    lines += [
        f"{row.name:{width}}  {duration(row.seconds):>9}  {row.ratio:7.3f}  "
        f"{row.low:7.3f} {row.high:7.3f}  {_number(row.floor):>6}  {_number(row.limit):>6} "
        f"{row.verdict}".rstrip()
        for row in answer.rows
    ]
    lines += [f"{name}: absent, {reason}" for name, reason in answer.absent.items()]
    return "\n".join(lines)


def exponents(curve: Curve) -> str:
    """The growth of every series, as text."""
    lines = [f"\n{curve.part}: {curve.name}"]
    if curve.powers:
        lines += [f"{name}: {curve.axis} ^ {e:.2f}" for name, e in curve.exponents().items()]
    else:
        lines += [f"{name}: {points[-1][1]:.4g} {curve.unit}" for name, points in _ends(curve)]
    return "\n".join(lines)


def _ends(curve: Curve) -> list[tuple[str, list[tuple[float, float]]]]:
    return [(name, points) for name, points in curve.series.items() if points]


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


_METHOD = """\
Every number is a time divided by that of the first row of its table, taken inside each round of
interleaved repeats: the median, and the quartiles in brackets. *noise* is what the same row gave of
itself. *floor* is the distance to the same result by straight-line calls of torch. One thread,
where nothing else is said.
"""


def page(record: Record) -> str:
    """The whole record as Markdown; ratios only, since seconds are one machine's own."""
    about = record.about
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items() if v != "absent")
    over = [
        f"{a.part}: {a.question}: {row.name} {row.ratio:.3f} ({row.limit:.2f})"
        for a in record.answers
        for row in a.rows
        if row.verdict == "OVER" and row.limit is not None
    ]
    machine = about["machine"]
    lines = [
        "# Results",
        "",
        f"`python -m benchmarks`, {about['date'][:10]}, in {about['seconds']} s.",
        f"{machine['system']}, {machine['processors']} processors, {machine['device']}.",
        f"{versions}.",
        "",
        _METHOD,
        f"Over their limit: {len(over)}.",
        *[f"- {line}" for line in over],
    ]
    for part, answers in groupby(record.answers, key=lambda answer: answer.part):
        lines += ["", f"## {part}"]
        for answer in answers:
            lines += ["", *_rows(answer)]
        for curve in record.curves:
            if curve.part == part:
                lines += ["", *_curve(curve)]
    named = {answer.part for answer in record.answers}
    for part, curves in groupby(record.curves, key=lambda curve: curve.part):
        if part not in named:
            lines += ["", f"## {part}"]
            for curve in curves:
                lines += ["", *_curve(curve)]
    return "\n".join(lines) + "\n"


def _rows(answer: Answer) -> Iterator[str]:
    floors = any(row.floor is not None for row in answer.rows)
    limits = any(row.limit is not None for row in answer.rows)
    yield f"**{answer.question}** (noise {spread(answer.rows) - 1:.0%})"
    yield ""
    yield "| | ratio |" + (" floor |" if floors else "") + (" limit |" if limits else "")
    yield "|---|---|" + ("---|" if floors else "") + ("---|" if limits else "")
    for row in _shown(answer.rows):
        ratio = f"{row.ratio:.3f} ({row.low:.3f}-{row.high:.3f})"
        floor = f" {_number(row.floor)} |" if floors else ""
        limit = f" {_number(row.limit)} {row.verdict} |" if limits else ""
        yield f"| {row.name} | {ratio} |{floor}{limit}"
    for name, reason in answer.absent.items():
        yield f"| {name} | absent: {reason} |" + floors * " |" + limits * " |"


def _shown(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.name != NOISE]


def _curve(curve: Curve) -> Iterator[str]:
    yield f"**{curve.name}**"
    yield ""
    if curve.powers:
        yield "| | exponent | from | to |"
        yield "|---|---|---|---|"
        for name, exponent in curve.exponents().items():
            (first, _), *_, (last, _) = curve.series[name]
            yield f"| {name} | {exponent:.2f} | {first:,.0f} | {last:,.0f} |"
    else:
        yield f"| | {curve.axis} | {curve.unit} |"
        yield "|---|---|---|"
        for name, points in _ends(curve):
            yield f"| {name} | {points[-1][0]:,.0f} | {points[-1][1]:.4g} |"
