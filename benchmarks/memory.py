"""How much memory does a gradient need at its peak?

What is measured is bytes, told as time: 1 MB reads as 1 ms.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Candidate, Question
from parallax import Module, Parameter, func

_SIZE = 100_000

# Else the profiler tells the screen about each time that it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


class Weight(Module):
    value: Parameter


def questions(quick: bool) -> Iterator[Question]:
    depth = 20 if quick else 200
    module = Weight(torch.full((_SIZE,), 0.5))

    def loss(value: Tensor) -> Tensor:
        for _ in range(depth):
            value = value.sin()
        return value.sum()

    def backward() -> None:
        leaf = module.value.detach().requires_grad_()
        loss(leaf).backward()

    ours, theirs = func.grad(lambda m: loss(m.value)), torch.func.grad(loss)
    reference = _peak("loss.backward()", backward)
    yield Question(
        f"peak memory of {depth} elementwise operations (1 MB as 1 ms)",
        reference,
        [
            _peak("parallax func.grad", lambda: ours(module), limit=1.05),
        ],
        peers=[_peak("torch.func.grad", lambda: theirs(module.value))],
        floor=reference,
        most_rounds=5,
    )


def _peak(name: str, run: Callable[[], Any], limit: float | None = None) -> Candidate:
    return Candidate(name, lambda: peak_bytes(run) * 1e-9, self_timed=True, limit=limit)


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that a call holds at once, as torch's allocator counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    inner: Any = recorded.profiler
    events = inner.kineto_results.events()
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
