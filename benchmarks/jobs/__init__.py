"""Training steps of five jobs, as users write them, against the best they could take instead.

Each job is a file: `language`, `maml`, `ensemble`, `physics` and `private`, each in a small and a
medium size. Every way begins with the same numbers, and its first losses are compared before
anything is timed. Peak memory follows each step: bytes, told as time.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Question
from benchmarks.jobs import ensemble, language, maml, physics, private

LATE = True


def questions(quick: bool) -> Iterator[Question]:
    for job in (language, maml, ensemble, physics, private):
        yield from job.questions(quick)
