"""A pure step needs no more memory than what it returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from parallax import Module, Parameter, optim, tree
from tests.optim.cases import HAS_FUSED

SIZE = 2**16
LEAVES = 6


class Wide(Module):
    leaves: tuple[Parameter, ...]


def wide() -> Any:
    leaves: Any = tuple([torch.ones(SIZE) for _ in range(LEAVES)])
    return Wide(leaves)


def peak(run: Any) -> int:
    """The most bytes that were allocated at once while running, beyond those at the start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        kept = run()
    now = most = 0
    profiler: Any = trace.profiler
    results = profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del kept
    return most


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}])
@pytest.mark.parametrize("name", HAS_FUSED)
def test_the_peak_is_one_copy_of_what_is_returned(name: str, options: dict[str, Any]) -> None:
    if name != "SGD":
        options = {key: value for key, value in options.items() if key != "momentum"}
    opt = getattr(optim, name)(**options)
    model = wide()
    model, state = opt.step(model, model, opt.init(model))
    grads = tree.map(torch.ones_like, model)
    returned = tree.nbytes((model, state))
    assert returned <= peak(lambda: opt.step(model, grads, state)) <= returned + 4096
    donated = peak(lambda: opt.step(model, grads, state, donate=True))
    assert donated <= 4096


@pytest.mark.parametrize("name", ["RMSprop", "Adadelta", "Adamax", "NAdam", "RAdam", "Rprop"])
def test_other_kernels_add_the_temporaries_of_one_leaf(name: str) -> None:
    opt = getattr(optim, name)()
    model = wide()
    model, state = opt.step(model, model, opt.init(model))
    returned = tree.nbytes((model, state))
    temporaries = 5 * SIZE * 4
    assert peak(lambda: opt.step(model, model, state)) <= returned + temporaries


def test_donated_accumulation_holds_no_second_sum() -> None:
    opt, model = optim.Accumulate(optim.AdamW(), every=2), wide()
    grads, state = tree.map(torch.ones_like, model), opt.init(model)
    size = tree.nbytes(model)

    def step() -> None:
        nonlocal model, state
        model, state = opt.step(model, grads, state, donate=True)

    assert peak(step) <= 4096
    assert peak(step) <= size + 4096  # the next sum
