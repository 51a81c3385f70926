"""Pictures of a record: one of bars for every part, one of lines for every curve."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.records import Answer, Curve, Record


def draw(record: Record, folder: Path, stem: str) -> list[Path]:
    """Draws a record as PNG files.

    Args:
        record: what was found.
        folder: where the pictures go.
        stem: what their names begin with.

    Returns:
        The files; none if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    made = []
    for part, answers in groupby(record.answers, key=lambda answer: answer.part):
        figure = Figure(layout="constrained")
        _bars(figure, list(answers))
        made.append(folder / f"{stem}-{part}.png")
        figure.savefig(made[-1], dpi=110)
    for number, curve in enumerate(record.curves):
        figure = Figure(figsize=(7, 5), layout="constrained")
        _lines(figure, curve)
        made.append(folder / f"{stem}-{curve.part}-curve{number}.png")
        figure.savefig(made[-1], dpi=110)
    return made


def _bars(figure: Any, answers: list[Answer]) -> None:
    """Ratios as bars with their quartiles; a tick where the limit is."""
    bars = [
        (f"{answer.question}{', all threads' * answer.all_threads}: {row.name}", row)
        for answer in answers
        for row in answer.rows[1:]
        if row.role != "noise"
    ]
    figure.set_size_inches(11, 1 + 0.28 * len(bars))
    axes = figure.add_subplot()
    for place, (_, row) in enumerate(bars):
        errors = [[max(row.ratio - row.low, 0)], [max(row.high - row.ratio, 0)]]
        colour = "tab:red" if row.verdict == "OVER" else "tab:blue"
        axes.barh(place, row.ratio, xerr=errors, color=colour, alpha=0.8)
        if row.limit is not None:
            axes.plot([row.limit] * 2, [place - 0.5, place + 0.5], color="black", linewidth=2)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="grey", linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("time as a ratio to the first row of each table; the black mark is the limit")


def _lines(figure: Any, curve: Curve) -> None:
    axes = figure.add_subplot()
    exponents = curve.exponents() if curve.powers else {}
    for name, points in curve.series.items():
        label = f"{name}  (exponent {exponents[name]:.2f})" if curve.powers else name
        marker = "o" if curve.powers else ""
        axes.plot(*zip(*points, strict=True), marker=marker, label=label, alpha=0.8)
    if curve.powers:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel(curve.axis)
    axes.set_ylabel(curve.unit)
    axes.set_title(curve.name)
    axes.legend(fontsize=8)
