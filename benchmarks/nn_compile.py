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

LATE = True

LIMIT = 0.25
WIDTH, BLOCKS = 64, 48


def questions(quick: bool) -> Iterator[Question]:
    if quick:
        return
    yield Question(
        f"first call of a compiled forward of {BLOCKS} blocks",
        Candidate("a tuple of blocks", lambda: _cold("tuple")[0], self_timed=True),
        [Candidate("Stack", lambda: _cold("stack")[0], self_timed=True, limit=LIMIT)],
        floor=Candidate("floor: one block alone", lambda: _cold("stack")[1], self_timed=True),
        most_rounds=2,
    )


@functools.cache
def _cold(which: str) -> list[float]:
    """The seconds that one process took for all blocks, and afterwards for one alone."""
    environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.nn_compile", which]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [float(seconds) for seconds in done.stdout.split()]


def _main(which: str) -> None:
    torch.set_num_threads(1)
    torch.compile(torch.sin)(torch.ones(3))  # what is only done once, whoever compiles
    up, down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
    block = nn.Residual(nn.Sequential(nn.LayerNorm(WIDTH), up, nn.GELU(), down))
    if which == "tuple":
        _first_call(nn.Sequential(*[copy.deepcopy(block) for _ in range(BLOCKS)]))
    else:
        _first_call(nn.Stack(block, BLOCKS))
        _first_call(block)


def _first_call(declared: Module) -> None:
    def forward(model: Any, x: Tensor) -> Any:
        return model(x)

    model, x = declared.initialize(0), torch.randn(4, 32, WIDTH)
    compiled = parallax.compile(forward)
    start = time.perf_counter()
    compiled(model, x)
    sys.stdout.write(f"{time.perf_counter() - start}\n")


if __name__ == "__main__":
    _main(sys.argv[1])
