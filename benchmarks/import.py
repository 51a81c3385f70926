# ruff: noqa: N999 (it is called as what it measures, and only ever loaded by name)
"""What does `import parallax` add to `import torch`?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.harness import Candidate, Question

BUDGET_SECONDS = 0.060


def questions(quick: bool) -> Iterator[Question]:
    yield Question(
        "import, in a new process each time",
        _candidate(f"a budget of {BUDGET_SECONDS * 1e3:.0f} ms", lambda: BUDGET_SECONDS),
        [
            _candidate("parallax, after torch", partial(_seconds, "parallax", "torch"), limit=1.0),
        ],
        floor=_candidate("floor: optree, after torch", partial(_seconds, "optree", "torch")),
        remains="180 Python files are imported, with their bytecode cached",
        most_rounds=2 if quick else 3,
    )


def _candidate(name: str, run: Callable[[], float], limit: float | None = None) -> Candidate:
    return Candidate(name, run, limit=limit, self_timed=True)


def _seconds(module: str, after: str) -> float:
    """Import a module in a fresh interpreter that has imported another one, and time it there."""
    program = (
        f"import {after}, time\n"
        "start = time.perf_counter()\n"
        f"import {module}\n"
        "print(time.perf_counter() - start)"
    )
    # With bytecode cached, as everywhere but on the very first import.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return float(done.stdout)
