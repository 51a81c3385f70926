"""Writes into lists, dicts and objects that are arguments are performed as in eager, or refused."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, Parameter, tree
from tests.compiling import make_compiled
from tests.corpus import Scale

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@dataclasses.dataclass
class Log:
    steps: int
    last: Any


def append(x: Tensor, history: Any) -> Any:
    history.append(2 * x)
    return x + 1


def rebuild(x: Tensor, items: Any) -> Any:
    items[0] = items[1]
    items.pop()
    items.insert(0, 3)
    items.extend(["text", None, x, Scale(x)])
    return items


def nest(x: Tensor, table: Any) -> Any:
    table["list"].append(3 * x)
    table["new"] = {"x": x, "count": len(table["list"])}
    del table["gone"]
    table["pair"][1]["inner"] = table["list"]
    return x


def count(x: Tensor, table: Any) -> Any:
    table["n"] += 1
    return x * table["n"]


def into_object(x: Tensor, log: Any) -> Any:
    log.steps, log.last = log.steps + 1, x * 2
    return x


def put(x: Tensor, table: Any) -> Any:
    table["x"] = x
    return x


def add(x: Tensor, numbers: Any) -> Any:
    numbers.add(3)
    return x + len(numbers)


def only_read(x: Tensor, items: Any) -> Any:
    return x + items[0]


WRITES: list[tuple[Callable[..., Any], Callable[[], Any]]] = [
    (append, list),
    (rebuild, lambda: [torch.ones(1), torch.zeros(1)]),
    (nest, lambda: {"list": [1, torch.ones(1)], "gone": 3, "pair": ("a", {})}),
    (count, lambda: {"n": 1}),
    (into_object, lambda: Log(0, None)),
    (put, OrderedDict),
    (put, lambda: defaultdict(list)),
    (add, lambda: {1}),
    (only_read, lambda: [torch.ones(2)]),
]


@pytest.mark.parametrize(("fn", "make"), WRITES)
def test_writes_into_arguments(fn: Callable[..., Any], make: Callable[[], Any]) -> None:
    x, compiled = torch.arange(2.0), make_compiled(fn, backend="eager")
    for _ in range(2):
        ours, theirs = make(), make()
        assert str(compiled(x, ours)) == str(fn(x, theirs))
        assert str(ours) == str(theirs)


def test_what_stays_in_a_list_is_the_callers_own() -> None:
    inner: list[Any] = []
    outer: list[Any] = [inner]

    def fn(x: Tensor, outer: Any) -> Any:
        outer[0].append(x)
        outer.append(x)
        return x

    compiled, x = make_compiled(fn, backend="eager"), torch.ones(2)
    compiled(x, outer)
    assert outer[0] is inner and inner == [x] and outer[1] is x


def test_a_list_in_two_places_is_refused() -> None:
    def fn(x: Tensor, one: Any, two: Any) -> Any:
        one.append(x)
        return len(two)

    compiled, shared = make_compiled(fn, backend="eager"), list[Any]()
    with pytest.raises(TypeError, match="two places"):
        compiled(torch.ones(1), shared, shared)
    assert shared == []
    assert compiled(torch.ones(1), [], []) == 0


class Cached(Module):
    weight: Parameter
    factor: float

    @cached_property
    def gram(self) -> Any:
        return self.weight @ self.weight.T

    @cached_property
    def doubled(self) -> float:
        return 2 * self.factor

    def forward(self, x: Tensor) -> Any:
        return x @ self.gram * self.doubled + self.gram.sum()


def test_a_cached_property_is_filled_in_compiled_code() -> None:
    x = torch.randn(2, 3)

    def fn(model: Any) -> Any:
        return torch.func.grad_and_value(lambda model: model(x).sum())(model)

    compiled = make_compiled(fn, backend="eager")
    fresh, filled = [Cached(torch.randn(3, 3), 1.5) for _ in range(2)]
    assert "gram" in dir(filled) and filled.gram is filled.gram
    for model in (fresh, filled, tree.map(lambda leaf: 2 * leaf, filled)):
        gram = model.weight @ model.weight.T
        grads, value = compiled(model)
        torch.testing.assert_close(value, (3 * x @ gram + gram.sum()).sum())
        again = Cached(model.weight.clone().requires_grad_(), 1.5)
        (expected,) = torch.autograd.grad(again(x).sum(), again.weight)
        torch.testing.assert_close(grads.weight, expected)
