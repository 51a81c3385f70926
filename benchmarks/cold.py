"""First calls: what compiles for the first time is timed in a process of its own.

What inductor compiles goes to a folder that is empty at first. This process uses it too, where it
runs again what was timed there: then it is found.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

CACHE, THREADS = "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"


@functools.cache
def use_empty_cache() -> None:
    """Lets inductor keep what it compiles in a folder of this run, here and in processes below."""
    os.environ[CACHE] = folder = tempfile.mkdtemp(prefix="benchmarks-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


@functools.cache
def seconds(part: str, *ways: str) -> dict[str, list[float]]:
    """What ``python -m`` of a part prints for each way, all of them at the same time.

    Args:
        part: a file of this package that takes a way as its argument, and prints seconds.
        *ways: at most as many as there are processors; they meet the same weather.

    Returns:
        The printed seconds by way.
    """
    use_empty_cache()
    # One thread each, so that two leave each other alone.
    environment = {**os.environ, THREADS: "1"}
    running = {
        way: subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", f"benchmarks.{part}", way],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for way in ways
    }
    printed = {way: process.communicate()[0] for way, process in running.items()}
    for way, process in running.items():
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, [part, way])
    return {way: [float(value) for value in text.split()] for way, text in printed.items()}


def first(part: str, way: str, *beside: str) -> Callable[[], float]:
    """The first number that a way prints, run once; ``beside`` are run at the same time."""
    ways = sorted({way, *beside})
    return lambda: seconds(part, *ways)[way][0]
