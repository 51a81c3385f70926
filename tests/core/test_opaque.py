"""Constants whose methods run as they are while dynamo traces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, Parameter
from parallax._compat.opaque import constant_while_tracing, real

calls: list[int] = []


@constant_while_tracing
class Step:
    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size

    def twice(self) -> Step:
        calls.append(self.size)  # a write that a trace could not make
        return Step(2 * self.size)

    def __eq__(self, other: object) -> bool:
        return type(other) is Step and self.size == other.size

    def __hash__(self) -> int:
        return hash(self.size)


@real
def table(step: Step, *names: str) -> dict[str, Step]:
    calls.append(0)
    return {name: Step(step.size + len(name)) for name in names}


def test_methods_and_functions_run_while_tracing_and_not_after() -> None:
    def fn(step: Any, x: Tensor) -> Any:
        found = table(step.itself().twice(), "a", "bb")
        assert type(found["a"]) is Step and found["a"] != found["bb"]
        return x + found["bb"].size, found["a"]

    torch._dynamo.reset()
    calls.clear()
    compiled = torch.compile(fn, backend="eager", fullgraph=True)
    for _ in range(3):  # equal constants share a graph
        out, step = compiled(Step(3), torch.zeros(1))
        assert out.item() == 8 and step == Step(7)
    assert calls == [3, 0]
    out, step = compiled(Step(4), torch.zeros(1))
    assert out.item() == 10 and step == Step(9)
    assert calls == [3, 0, 4, 0]


class Scaled(Module):
    weight: Parameter
    times: int
    sizes: tuple[tuple[int, ...], ...]

    def __init__(self, weight: Tensor, times: int, *sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.times, self.sizes = weight, times, sizes


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("dynamic", [None, True])
def test_numbers_that_differ_between_calls_are_constants_of_a_module(dynamic: bool | None) -> None:
    def onward(model: Scaled, count: int) -> Scaled:
        sizes = [(model.times, count), *model.sizes]
        return Scaled(model.weight * model.times, model.times + count, *sizes)

    compiled = torch.compile(onward, backend="eager", dynamic=dynamic)
    expected = model = Scaled(torch.ones(2), 1)
    for count in (1, 2, 4):
        expected, model = onward(expected, count), compiled(model, count)
        assert torch.equal(model.weight, expected.weight)
        assert (model.times, model.sizes) == (expected.times, expected.sizes)
    assert type(model.times) is int
