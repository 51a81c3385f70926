"""What a run of the benchmarks found, as a file: written, read back, and compared."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import exp, log
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Row

PEERS = ("tensordict", "torchopt", "structional", "jax", "equinox", "opacus")


@dataclass(frozen=True)
class Answer:
    """The rows measured for one question of one part.

    Attributes:
        part: Which file of the benchmarks asked.
        question: What was asked.
        rows: What was found; the first is the reference.
        absent: Peers that were not there, with the reason.
        remains: Why a row stays far from the floor, or behind a peer.
        all_threads: Whether torch was given all of its threads.
    """

    part: str
    question: str
    rows: Sequence[Row]
    absent: dict[str, str] = field(default_factory=dict)
    remains: str = ""
    all_threads: bool = False

    @property
    def asked(self) -> tuple[str, str, bool]:
        """What no other answer of the record answers."""
        return self.part, self.question, self.all_threads


@dataclass(frozen=True)
class Curve:
    """What changes with something else: seconds with a size, a loss with the steps.

    Attributes:
        part: which file of the benchmarks found it.
        name: what is shown.
        axis: what changes.
        unit: of the values.
        series: points ``(x, value)`` by name.
        powers: whether the values follow powers of ``axis``: then both axes are logarithmic, and
            the exponents are fitted.
    """

    part: str
    name: str
    axis: str
    unit: str
    series: dict[str, list[tuple[float, float]]]
    powers: bool = True

    def exponents(self) -> dict[str, float]:
        """The slope of each series between logarithms, by least squares."""
        return {name: _slope(points) for name, points in self.series.items()}

    def ends(self) -> dict[str, tuple[float, float]]:
        """The last point of each series."""
        return {name: points[-1] for name, points in self.series.items()}


def _slope(points: Sequence[tuple[float, float]]) -> float:
    xs, ys = [log(x) for x, _ in points], [log(y) for _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - mean_x) ** 2 for x in xs)


@dataclass(frozen=True)
class Record:
    """Everything that one run found, and where it was found."""

    about: dict[str, Any]
    answers: list[Answer]
    curves: list[Curve]


def about(device: str, seconds: float, *, quick: bool) -> dict[str, Any]:
    """The circumstances of a run: its date, machine and versions."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "optree", "parallax-torch", *PEERS):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "date": date,
        "quick": quick,
        "seconds": round(seconds),
        "machine": machine,
        "versions": versions,
    }


def save(record: Record, path: Path) -> None:
    """Writes a record as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(record), indent=1) + "\n")


def load(path: Path) -> Record:
    """Reads what ``save`` wrote."""
    raw = json.loads(path.read_text())
    answers = [
        Answer(**{**answer, "rows": [Row(**row) for row in answer["rows"]]})
        for answer in raw["answers"]
    ]
    curves = [
        Curve(**{**c, "series": {k: [(x, y) for x, y in v] for k, v in c["series"].items()}})
        for c in raw["curves"]
    ]
    return Record(raw["about"], answers, curves)


def moved(old: Record, new: Record) -> Iterator[str]:
    """A line for every ratio that changed beyond the noise.

    That is when the quartiles of the two runs do not overlap, and the change is larger than what
    the reference's own second timing showed in either run.
    """
    before = {answer.asked: {row.name: row for row in answer.rows} for answer in old.answers}
    for answer in new.answers:
        rows = before.get(answer.asked, {})
        noise = max([_noise(rows.values()), _noise(answer.rows)])
        for row in answer.rows[1:]:
            was = rows.get(row.name)
            if was is None or row.role == "noise":
                continue
            apart = row.low > was.high or row.high < was.low
            if apart and abs(log(row.ratio / was.ratio)) > noise:
                change = row.ratio / was.ratio - 1
                yield (
                    f"{answer.part}: {answer.question}: {row.name}: "
                    f"{was.ratio:.3f} -> {row.ratio:.3f} ({change:+.0%})"
                )


def _noise(rows: Any) -> float:
    """How far the reference was from itself, as a logarithm."""
    spread = [max(abs(log(row.low)), abs(log(row.high))) for row in rows if row.role == "noise"]
    return max(spread, default=0.0)


def spread(rows: Sequence[Row]) -> float:
    """By which factor a ratio may differ from 1 and mean nothing."""
    return exp(_noise(rows))
