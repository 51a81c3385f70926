"""How long does it take to compile many equal blocks, in a tuple and in a `Stack`?

Cold, in processes of their own and an empty cache; what is timed is the first call, once. Blocks
are those of an MLP with residuals: a tuple of 48 layers of a transformer takes two minutes.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import parallax
from benchmarks.cold import seconds
from benchmarks.harness import Candidate, Question
from parallax import Module, nn

LATE = True

LIMIT = 0.25
WIDTH, BLOCKS = 64, 48


def questions(quick: bool) -> Iterator[Question]:
    if quick:
        return
    taken = partial(seconds, "nn_compile", "stack", "tuple")
    yield Question(
        f"first call of a compiled forward of {BLOCKS} blocks",
        Candidate("a tuple of blocks", lambda: taken()["tuple"][0], self_timed=True),
        [Candidate("Stack", lambda: taken()["stack"][0], self_timed=True, limit=LIMIT)],
        floor=Candidate("floor: one block alone", lambda: taken()["stack"][1], self_timed=True),
        most_rounds=2,
    )


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
