"""What does a loop over rows cost, beside Python's?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Candidate, Question
from parallax import func, nn


def questions(quick: bool) -> Iterator[Question]:
    steps, width = (10, 4) if quick else (1_000, 16)
    cell = nn.GRUCell(width, width).initialize(0)
    yield _scan(f"{steps} steps of a GRU cell of width {width}", cell, steps, width)


def _scan(name: str, cell: Any, steps: int, width: int) -> Question:
    xs, start = torch.randn(steps, 1, width), torch.zeros(1, width)

    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = cell(x, h)
        return h, h

    def loop() -> Any:
        h, outs = start, []
        for x in xs.unbind(0):
            h, out = step(h, x)
            outs.append(out)
        return h, torch.stack(outs)

    return Question(
        name,
        Candidate("a loop of Python", loop),
        [Candidate("func.scan", lambda: func.scan(step, start, xs), limit=1.1)],
        check=torch.testing.assert_close,
        context=torch.no_grad,
    )
