"""What the first step of a job costs: with empty caches, and in a second process with full ones.

Each way starts in processes of its own, with a folder of its own for what inductor keeps. What is
told is CPU time from the making of a step to its end, of the process and those it starts: the
seconds of a quiet machine, on a busy one, too. Torch imports files of its compiler in the first
step, so their bytecode is kept, as it is where Python may write it. Headers that torch compiles
once for a machine are in it, in the first run there.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

from benchmarks.cold import CACHE, THREADS
from benchmarks.harness import Candidate, Question
from benchmarks.jobs.way import Step


def race(
    name: str,
    job: str,
    ways: Mapping[str, str],
    first: Mapping[str, float],
    second: Mapping[str, float],
) -> Sequence[Question]:
    """The questions of a job's first steps.

    Args:
        name: what the steps do.
        job: the file of this folder that starts one way, when it is run with the way's word.
        ways: the words, by the names of the ways; the first is the reference.
        first: the ratio to the reference that a way must not exceed, with empty caches.
        second: the same, with full caches.
    """
    reference, *others = ways

    def question(place: int, when: str, limits: Mapping[str, float]) -> Question:
        def candidate(way: str) -> Candidate:
            run = functools.partial(_seconds_at, place, job, ways[way])
            return Candidate(way, run, limit=limits.get(way), self_timed=True)

        ours = [candidate(way) for way in others]
        return Question(f"{name}, first step {when}", candidate(reference), ours, most_rounds=2)

    return [
        question(0, "with empty caches, CPU time", first),
        question(1, "in a second process, CPU time", second),
    ]


def start(ways: Mapping[str, Callable[[], Step]]) -> None:
    """Prints the seconds that the first step takes of the way that the command line names."""
    make = ways[sys.argv[1]]
    before = sum(os.times()[:4])
    float(make()())
    print(sum(os.times()[:4]) - before)


_IMPORTS = """
import torch
x = torch.ones(8, 8, requires_grad=True)
torch.compile(lambda x: (x @ x).sin().sum())(x).backward()
"""


@functools.cache
def _bytecode() -> tempfile.TemporaryDirectory[str]:
    """A folder for the bytecode of all ways, which a small compiled function has filled."""
    folder = tempfile.TemporaryDirectory(prefix="benchmarks-")
    command = [sys.executable, "-W", "ignore", "-c", _IMPORTS]
    subprocess.run(command, env=_environment(folder.name, folder.name), check=True)
    return folder


def _environment(caches: str, bytecode: str) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**given, CACHE: caches, THREADS: "1", "PYTHONPYCACHEPREFIX": bytecode}


def _seconds_at(place: int, job: str, word: str) -> float:
    return _seconds(job, word)[place]


@functools.cache
def _seconds(job: str, word: str) -> tuple[float, float]:
    """Of a first and a second process, which run once, however often they are asked for."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        environment = _environment(folder, _bytecode().name)
        command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.jobs.{job}", word]
        one, two = [
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            for _ in range(2)
        ]
    return float(one.stdout), float(two.stdout)
