"""Say what was measured: a table on the screen, a file to compare with later."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.harness import Row

Ratios = dict[tuple[str, str, str], float]


@dataclass(frozen=True)
class Answer:
    """The rows measured for one question of one file."""

    file: str
    question: str
    rows: Sequence[Row]


def table(answer: Answer, before: Ratios) -> str:
    """Lay out an answer as text.

    Args:
        answer: What to show.
        before: Ratios of an earlier run, for a column of changes; may be empty.

    Returns:
        A heading and a line for every row.
    """
    width = max(len(row.name) for row in answer.rows)
    head = f"{'':{width}}  {'time':>9}  {'ratio':>7}  {'quartiles':^15}  {'limit':>6}"
    lines = [f"\n{answer.file}: {answer.question}", head + ("    before" if before else "")]
    for row in answer.rows:
        limit = "" if row.limit is None else f"{row.limit:.2f}"
        line = (
            f"{row.name:{width}}  {_time(row.seconds):>9}  {row.ratio:7.3f}  "
            f"{row.low:7.3f} {row.high:7.3f}  {limit:>6} {row.verdict:4}"
        )
        old = before.get((answer.file, answer.question, row.name))
        if old is not None:
            line += f" {old:6.3f} ({row.ratio / old - 1:+.0%})"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def save(answers: Sequence[Answer], path: Path, *, quick: bool) -> None:
    """Write the answers to a file, with the circumstances in which they were found."""
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processors": os.cpu_count(),
            "torch threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "optree", "parallax")},
        "answers": [asdict(answer) for answer in answers],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def load_ratios(path: Path) -> Ratios:
    """Read the ratios that an earlier run saved."""
    answers = json.loads(path.read_text())["answers"]
    return {
        (answer["file"], answer["question"], row["name"]): row["ratio"]
        for answer in answers
        for row in answer["rows"]
    }
