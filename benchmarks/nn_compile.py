"""How long does it take to compile many equal blocks, in a tuple and in a `Stack`?

Cold, in processes of their own without caches; what is timed is the first call. Each is run once.
The blocks are those of an MLP with residuals: a tuple of 48 layers of a transformer takes two
minutes.
"""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import parallax
from benchmarks.harness import Candidate, Question
from parallax import Module, nn

LIMIT = 0.25
WIDTH = 64


def questions(quick: bool) -> Iterator[Question]:
    if quick:
        return
    yield _question("inductor", 48, LIMIT)


def _question(backend: str, blocks: int, limit: float | None = None) -> Question:
    def run(which: str) -> float:
        return _cold(which, backend, str(blocks))

    return Question(
        f"first call of a compiled forward of {blocks} blocks, {backend}",
        Candidate("a tuple of blocks", lambda: run("tuple"), self_timed=True),
        [Candidate("Stack", lambda: run("stack"), self_timed=True, limit=limit)],
        floor=Candidate("floor: one block alone", lambda: run("one"), self_timed=True),
        most_rounds=2,
    )


@functools.cache
def _cold(*arguments: str) -> float:
    environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.nn_compile", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _main(which: str, backend: str, blocks: str) -> None:
    torch.set_num_threads(1)
    up, down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
    block = nn.Residual(nn.Sequential(nn.LayerNorm(WIDTH), up, nn.GELU(), down))
    count = 1 if which == "one" else int(blocks)
    model: Any = nn.Stack(block, count)
    if which != "stack":
        model = nn.Sequential(*[copy.deepcopy(block) for _ in range(count)])
    model = model.initialize(0)

    def forward(model: Module, x: Tensor) -> Any:
        return model(x)

    compiled: Any = parallax.compile(forward, backend=backend)
    torch.compile(torch.sin)(torch.ones(3))  # what is only done once, whoever compiles
    x = torch.randn(4, 32, WIDTH)
    start = time.perf_counter()
    compiled(model, x)
    sys.stdout.write(f"{time.perf_counter() - start}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
