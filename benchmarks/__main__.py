"""Run the benchmarks: `python -m benchmarks [parts...] [--quick] [--compare OLD] [--bless]`.

A part is a file of this package that defines `questions(quick)`, `curves(quick, ask)` or both.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from importlib import import_module
from pathlib import Path
from time import perf_counter

import torch

import benchmarks
from benchmarks import harness, headline, page, plots, records, report
from benchmarks.harness import Question, Row
from parallax.examples._progress import progress

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


def main() -> None:
    parser = _parser()
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; leave it out to measure on the CPU")
    names = asked.parts or _parts(asked.device)
    unknown = sorted(set(names) - set(_parts("cpu")) - set(_parts("cuda")))
    if unknown:
        parser.error(f"no part named {', '.join(unknown)}; there are {', '.join(_parts('cpu'))}")
    before = records.load(asked.compare) if asked.compare else None
    torch.set_num_threads(1)
    start = perf_counter()
    answers, curves = _ask(names, quick=asked.quick)
    about = records.about(asked.device, perf_counter() - start, quick=asked.quick)
    record = records.Record(about, answers, curves)

    path = asked.json or RESULTS / f"{datetime.now():%Y-%m-%d-%H%M%S}.json"
    records.save(record, path)
    pictures = plots.draw(record, path.parent, path.stem)
    over = sum(row.verdict == "OVER" for answer in answers for row in answer.rows)
    print(f"\n{over} over the limit, in {about['seconds']} s. Saved as {path}")
    print(f"with {len(pictures)} pictures" if pictures else "without pictures: no matplotlib")
    if before:
        lines = list(records.moved(before, record))
        print("\n".join(["", f"{len(lines)} moved beyond the noise", *lines]))
    if asked.bless:
        (FOLDER / "RESULTS.md").write_text(page.page(record))
        (FOLDER / "speed.svg").write_text(headline.picture(record))


def _ask(names: Sequence[str], *, quick: bool) -> tuple[list[records.Answer], list[records.Curve]]:
    effort = harness.QUICK if quick else harness.FULL
    answers: list[records.Answer] = []
    curves: list[records.Curve] = []

    def ask(question: Question) -> list[Row]:
        return harness.measure(question, effort, progress)

    for name in names:
        part = import_module(f"benchmarks.{name}")
        began = perf_counter()
        for question in part.questions(quick) if hasattr(part, "questions") else ():
            absent = dict(question.absent)
            answers.append(
                records.Answer(name, question.name, ask(question), absent, question.remains)
            )
            print(report.table(answers[-1]), flush=True)
            if question.all_threads and not quick:
                answers.append(_on_all_threads(name, question))
                print(report.table(answers[-1]), flush=True)
        for curve in part.curves(quick, ask) if hasattr(part, "curves") else ():
            curves.append(curve)
            print(report.curve(curve), flush=True)
        print(f"\n{name} took {perf_counter() - began:.0f} s", flush=True)
    return answers, curves


def _on_all_threads(part: str, question: Question) -> records.Answer:
    """Ask again with all of torch's threads; the limits were set for one."""
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        rows = harness.measure(replace(question, floor=None), harness.SHORT, progress)
    finally:
        torch.set_num_threads(1)
    rows = [replace(row, limit=None) for row in rows]
    return records.Answer(part, question.name, rows, {}, question.remains, all_threads=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("parts", nargs="*", help="which parts to run; all if none is named")
    parser.add_argument("--quick", action="store_true", help="see that all runs; numbers are rough")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to save the results")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="results to compare with")
    parser.add_argument("--bless", action="store_true", help="write RESULTS.md and speed.svg, too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    return parser


def _parts(device: str) -> list[str]:
    """The files that measure something, in the order of the alphabet.

    Those that say they are `LATE` come last: what they leave of the process, a heap in pieces and
    dynamo's hooks, would be in the numbers of the others.
    """
    found = []
    for info in pkgutil.iter_modules(benchmarks.__path__):
        if not info.name.startswith("_"):
            part = import_module(f"benchmarks.{info.name}")
            measures = hasattr(part, "questions") or hasattr(part, "curves")
            if measures and getattr(part, "DEVICE", "cpu") == device:
                found.append((getattr(part, "LATE", False), info.name))
    return [name for _, name in sorted(found)]


if __name__ == "__main__":
    main()
