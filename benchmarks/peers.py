"""Other libraries that do the same: optional, and where one is absent the reason is told.

JAX runs in a process of its own, since it brings threads and an allocator; what it is asked for is
timed there, in the same rounds as everything else.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.harness import Candidate

_CALLS = 20


def find(name: str, absent: dict[str, str]) -> Any:
    """A library, or `None` and its reason in `absent`."""
    if find_spec(name) is None:
        absent[name] = f"not installed: pip install {name}"
        return None
    return import_module(name)


def equinox(task: str, name: str, absent: dict[str, str]) -> list[Candidate]:
    """What Equinox needs for a task of `benchmarks/_jax.py`; nothing if it is not installed."""
    missing = [library for library in ("jax", "equinox") if find_spec(library) is None]
    if missing:
        absent["equinox"] = f"not installed: pip install {' '.join(missing)}"
        return []

    def seconds() -> float:
        worker = _worker()
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps([task, _CALLS]) + "\n")
        worker.stdin.flush()
        return float(worker.stdout.readline())

    return [Candidate(name, seconds, self_timed=True)]


@cache
def _worker() -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "benchmarks._jax"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_stop, worker)
    return worker


def _stop(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    worker.stdin.close()
    worker.wait(timeout=10)
