"""What a forward does to its modules is undone, or left to who holds them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parallax import bridge, effects, func, tree
from tests.bridge.models import snapshot, unchanged


class Forgetful(nn.Module):
    """Writes attributes, containers and a replaced buffer in forward."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.log: list[int] = []
        self.last: Tensor | None = None
        self.inner = nn.Linear(2, 2)
        self.register_buffer("state", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(self.calls)
        last: Tensor = self.inner(x)
        self.last = last
        if self.training:
            self.state = self.state + 1
        return last * self.calls * len(self.log)


def test_attributes_written_by_forward_are_forgotten() -> None:
    model = Forgetful().eval()
    lifted = bridge.lift(model)
    before = snapshot(model)
    x = torch.randn(2)
    first = lifted(x)
    assert torch.equal(lifted(x), first) and torch.equal(lifted(x), first)
    assert lifted.calls == 0 and lifted.log == [] and lifted.last is None
    unchanged(model, before)
    assert model.log == []


def test_a_replaced_buffer_is_an_effect() -> None:
    lifted = bridge.lift(Forgetful())
    _, after = effects.collect(type(lifted).__call__)(lifted, torch.randn(2))
    assert torch.equal(after.state, torch.ones(2)) and torch.equal(lifted.state, torch.zeros(2))


def test_a_skeleton_somebody_holds_is_left_to_them() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Any:
            return lambda: self.linear(x)

        def steps(self, x: Tensor) -> Iterator[Tensor]:
            for _ in range(3):
                x = self.linear(x)
                yield x

    model = Lazy()
    lifted = bridge.lift(model)
    x = torch.randn(2)
    later = lifted(x)
    other = tree.map(torch.zeros_like, lifted)
    assert torch.equal(other(x)(), torch.zeros(2))
    torch.testing.assert_close(later(), model.linear(x))
    steps = lifted.steps(x)
    next(steps)
    other(x)
    torch.testing.assert_close(next(steps), model.linear(model.linear(x)))


def test_checkpoint_recomputes_with_the_leaves_of_its_call() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            return checkpoint(lambda y: self.linear(y).tanh(), x, use_reentrant=False)

    model = Checkpointed()
    lifted = bridge.lift(model)
    x = torch.randn(3)
    out = lifted.reset(0)
    grads = func.grad(lambda m: m(x).sum())(lifted)
    first = out(x).sum()
    tree.map(torch.zeros_like, lifted)(x)  # another call between forward and backward
    first.backward()
    model(x).sum().backward()
    torch.testing.assert_close(grads.linear.weight, model.linear.weight.grad)
    torch.testing.assert_close(out.grad().linear.weight, model.linear.weight.grad)


@pytest.mark.usefixtures("small_heap")
def test_no_weights_stay_behind_after_a_call() -> None:
    lifted = bridge.lift(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)), copy=True)
    alive = [weakref.ref(leaf) for leaf in tree.leaves(lifted)]
    lifted[0](torch.randn(2))
    lifted(torch.randn(3, 2))
    del lifted
    gc.collect()
    assert all(ref() is None for ref in alive)


def test_what_nested_containers_hold_is_forgotten() -> None:
    class Logging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log: dict[str, list[int]] = {"calls": []}

        def forward(self) -> int:
            self.log["calls"].append(1)
            self.log["other"] = []
            return len(self.log["calls"])

    model = Logging()
    lifted = bridge.lift(model)
    assert [lifted(), lifted(), lifted()] == [1, 1, 1]
    assert model.log == {"calls": []} == lifted.log


def test_a_generator_keeps_what_it_wrote() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.count = 0

        def forward(self, x: Tensor) -> Iterator[Tensor]:
            while True:
                self.count += 1
                self.last = self.linear(x) * self.count
                yield self.last

    model, x = Counting().requires_grad_(False), torch.randn(2)
    lifted = bridge.lift(model)
    mine, theirs = lifted(x), model(x)
    for _ in range(3):
        assert torch.equal(next(mine), next(theirs))
        assert torch.equal(next(lifted(x)), model.linear(x))
    assert lifted.count == 0


def test_one_skeleton_serves_call_after_call() -> None:
    lifted, x = bridge.lift(Forgetful().eval()), torch.randn(2)
    lifted(x)
    pools = [pool for name, pool in lifted._spec.variants.items() if "skeletons" in str(name)]
    (first,) = pools[0]
    for _ in range(3):
        lifted(x)
    assert pools[0] == [first]
