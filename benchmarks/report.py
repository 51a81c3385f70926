"""Say what was measured, as text on the screen."""

from __future__ import annotations

from benchmarks.records import Answer, Curve


def table(answer: Answer) -> str:
    """Lay out an answer as text: a heading and a line for every row."""
    width = max(len(row.name) for row in answer.rows)
    head = f"{'':{width}}  {'time':>9}  {'ratio':>7}  {'quartiles':^15}  {'floor':>6}  {'limit':>6}"
    threads = ", all threads" if answer.all_threads else ""
    lines = [f"\n{answer.part}: {answer.question}{threads}", head.rstrip()]
    lines += [
        f"{row.name:{width}}  {duration(row.seconds):>9}  {row.ratio:7.3f}  "
        f"{row.low:7.3f} {row.high:7.3f}  {number(row.floor):>6}  {number(row.limit):>6} "
        f"{row.verdict}".rstrip()
        for row in answer.rows
    ]
    lines += [f"{name}: absent, {reason}" for name, reason in answer.absent.items()]
    return "\n".join(lines)


def curve(drawn: Curve) -> str:
    """The growth of every series, or where it ends, as text."""
    lines = [f"\n{drawn.part}: {drawn.name}"]
    if drawn.powers:
        lines += [f"{name}: {drawn.axis} ^ {e:.2f}" for name, e in drawn.exponents().items()]
    else:
        lines += [f"{name}: {y:.4g} {drawn.unit}" for name, (_, y) in drawn.ends().items()]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def number(value: float | None) -> str:
    """A ratio in two decimals, or nothing."""
    return "" if value is None else f"{value:.2f}"
