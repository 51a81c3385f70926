"""How much memory do a gradient and a step of training need at their peak?

What is measured is bytes, told as time: 1 MB reads as 1 ms.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import parallax
from benchmarks.harness import Candidate, Question
from benchmarks.models import NnMLP, mirror
from parallax import Module, Parameter, func, optim, tree
from parallax._compat import functorch

_SIZE = 100_000
_WIDTH = 512
_MARK = 12_347  # bytes: where a call begins among the events

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

    if not quick:
        yield _step()


def _step() -> Question:
    """A compiled step of Adam, beside what it holds before and after: three copies of the model."""
    torch.manual_seed(0)
    net = NnMLP((_WIDTH, _WIDTH, _WIDTH, _WIDTH))
    x = torch.randn(8, _WIDTH)
    adam = torch.optim.AdamW(net.parameters(), fused=True)
    forward: Any = torch.compile(_loss)

    def by_torch() -> None:
        forward(net, x).backward()
        adam.step()
        adam.zero_grad()  # so that no gradients are there at the next beginning

    reference = _peak("nn.Module, compiled", _warm(by_torch))
    return Question(
        "peak memory of a compiled step (1 MB as 1 ms)",
        reference,
        [
            _peak("parallax.compile", _warm(_whole(net, x))),
            _peak("parallax.compile, donated", _warm(_whole(net, x, donate=(0, 1))), limit=1.05),
        ],
        floor=reference,
        most_rounds=5,
    )


def _loss(model: Any, x: Tensor) -> Any:
    return model(x).square().mean()


def _whole(net: NnMLP, x: Tensor, **options: Any) -> Callable[[], None]:
    opt = optim.AdamW()

    def train(model: Any, state: Any, x: Tensor) -> Any:
        grads, loss = func.grad_and_value(lambda model: _loss(model, x))(model)
        return *opt.step(model, grads, state), loss

    step: Any = parallax.compile(train, **options)
    model: Any = tree.map(torch.clone, mirror(net))
    state: Any = opt.init(model)

    def run() -> None:
        nonlocal model, state
        model, state, _ = step(model, state, x)

    return run


def _warm(run: Callable[[], None]) -> Callable[[], None]:
    for _ in range(2):
        run()
    return run


def _peak(name: str, run: Callable[[], Any], limit: float | None = None) -> Candidate:
    return Candidate(name, lambda: peak_bytes(run) * 1e-9, self_timed=True, limit=limit)


def peak_bytes(run: Callable[[], Any], before: Callable[[], Any] | None = None) -> int:
    """The most bytes that a call holds at once, as torch's allocator counts them.

    Args:
        run: the call.
        before: called first. Only memory that was taken since is seen to be given back, so a step
            that frees what the last one made has that step here.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        if before is not None:
            before()
        torch.empty(_MARK, dtype=torch.uint8)
        run()
    inner: Any = recorded.profiler
    events = inner.kineto_results.events()
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            if event.nbytes() == _MARK:
                held = most = 0
            held += event.nbytes()
            most = max(most, held)
    return most


def live_bytes() -> int:
    """The memory of all tensors that Python reaches, and of their gradients."""
    gc.collect()
    found = [value for value in gc.get_objects() if isinstance(value, Tensor)]
    found += [value.grad for value in found if value.is_leaf and value.grad is not None]
    dense = [value.untyped_storage() for value in found if _has_memory(value)]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in dense}
    return sum(sizes.values())


def _has_memory(value: Tensor) -> bool:
    """Not so of other layouts, of subclasses, and of the stand-ins that traces leave behind."""
    plain = type(value) in (Tensor, torch.nn.Parameter) and not functorch.is_wrapped(value)
    return plain and value.layout is torch.strided
