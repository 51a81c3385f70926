"""Run the benchmarks: `python -m benchmarks [names...] [--quick] [--json PATH] [--compare OLD]`."""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import import_module
from pathlib import Path

import torch

import benchmarks
from benchmarks import harness, report
from parallax.examples.progress import progress

Questions = Callable[[bool], Iterator[harness.Question]]

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    asked = _parser().parse_args()
    files = _files()
    unknown = sorted(set(asked.names) - set(files))
    if unknown:
        _parser().error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(files)}")
    before = report.load_ratios(asked.compare) if asked.compare else {}
    torch.set_num_threads(asked.threads)
    effort = harness.QUICK if asked.quick else harness.FULL
    answers = []
    for name in asked.names or files:
        for question in files[name](asked.quick):
            answer = report.Answer(name, question.name, harness.measure(question, effort, progress))
            answers.append(answer)
            print(report.table(answer, before), flush=True)
    path = asked.json or RESULTS / f"{datetime.now():%Y-%m-%d-%H%M%S}.json"
    report.save(answers, path, quick=asked.quick)
    over = sum(row.verdict == "OVER" for answer in answers for row in answer.rows)
    print(f"\n{over} over the limit. Saved as {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("names", nargs="*", help="which files to run; all if none is named")
    parser.add_argument("--quick", action="store_true", help="see that all runs; numbers are rough")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to save the results")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="results to compare with")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    return parser


def _files() -> dict[str, Questions]:
    """Find the files of this package that ask questions."""
    modules = {
        info.name: import_module(f"benchmarks.{info.name}")
        for info in pkgutil.iter_modules(benchmarks.__path__)
        if info.name != "__main__"
    }
    return {
        name: module.questions for name, module in modules.items() if hasattr(module, "questions")
    }


if __name__ == "__main__":
    main()
