"""Modules made within the graph."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from parallax import Module, Parameter, tree
from parallax.core.frozendict import FrozenDict
from tests.comparing import assert_close_trees
from tests.compiling import compiled
from tests.corpus import MLP, SIZE, TiedParameter
from tests.interop.compile.steps import INPUT, loss_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Point(Module):
    """A generated ``__init__``, a default and a converter."""

    at: Parameter
    scale: float = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.at * x


class Pair(Module):
    left: Module
    right: Module
    both: tuple[Point, Point]
    named: dict[str, Point]

    def __init__(self, left: Module, right: Module) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.both = (Point(torch.ones(2)), Point(torch.ones(2) * 2))
        self.named = {"z": Point(torch.zeros(2)), "a": Point(torch.ones(2))}


def test_a_module_made_inside_comes_out_whole() -> None:
    fn, counter = compiled(lambda x: Point(x + 1))
    for k in range(3):
        point = fn(torch.full((2,), float(k)))
        assert_close_trees(point, Point(torch.full((2,), k + 1.0)))
        assert point.scale == 2.0
        assert_close_trees(
            tree.map(lambda leaf: leaf * 2, point), Point(torch.full((2,), 2 * k + 2.0))
        )
        with pytest.raises(AttributeError):
            point.at = None
    assert counter.frame_count == 1


def test_a_tree_made_inside_works_outside_and_fed_back() -> None:
    def make(x: Tensor) -> Any:
        return Pair(Point(x), Point(2 * x))

    def double(pair: Any) -> Any:
        return tree.map(lambda leaf: 2 * leaf, pair)

    fn, counter = compiled(make)
    pair = fn(torch.ones(2))
    assert_close_trees(pair, make(torch.ones(2)))
    assert type(pair.named).__name__ == "FrozenDict" and list(pair.named) == ["z", "a"]
    assert_close_trees(pickle.loads(pickle.dumps(fn(torch.ones(2)))), make(torch.ones(2)))
    assert counter.frame_count == 1
    again, counter = compiled(double)
    for _ in range(3):
        pair = again(pair)
    assert_close_trees(pair, tree.map(lambda leaf: 8 * leaf, make(torch.ones(2))))


def test_a_step_that_makes_its_module_anew() -> None:
    def remake(module: Any, x: Tensor) -> Any:
        grads = torch.func.grad(lambda m: (m(x) ** 2).sum())(module)
        return Point(module.at - 0.1 * grads.at, module.scale)

    fn, counter = compiled(remake)
    module = expected = Point(torch.ones(SIZE))
    for _ in range(5):
        module, expected = fn(module, INPUT), remake(expected, INPUT)
        assert_close_trees(module, expected)
    assert counter.frame_count == 1


class Row(NamedTuple):
    one: Point
    two: Point


class Held(Module):
    several: list[Point]
    row: Row
    named: dict[str, list[Point]]


def test_containers_given_inside_are_frozen_as_outside() -> None:
    def make(x: Tensor) -> Any:
        row = Row(Point(x), Point(x + 1))
        return Held([Point(x), Point(2 * x)], row, {"a": [Point(3 * x)]})

    fn, counter = compiled(make)
    got, expected = fn(torch.ones(2)), make(torch.ones(2))
    for held in (got, expected):
        assert type(held.several) is tuple and type(held.row) is Row
        assert type(held.named) is FrozenDict and type(held.named["a"]) is tuple
    assert_close_trees(got, expected)
    assert tree.structure(got) == tree.structure(expected)
    assert counter.frame_count == 1


def test_ties_of_modules_made_inside_are_exact() -> None:
    class Twice(Module):
        one: Point
        two: Point

        def forward(self, x: Tensor) -> Any:
            return self.two(self.one(x))

    def grads(x: Tensor) -> Any:
        point = Point(x + 1)
        return torch.func.grad(lambda m: m(x).sum())(Twice(point, point))

    fn, counter = compiled(grads)
    for k in range(3):
        x = torch.full((2,), float(k))
        got = fn(x)
        assert_close_trees(got, grads(x))
        assert got.one.at is got.two.at
        torch.testing.assert_close(got.one.at, 8 * (x + 1) * x)  # d/dp of 4 p^2 x
    assert counter.frame_count == 1


def test_modules_made_inside_around_tied_inputs() -> None:
    class Wrap(Module):
        inner: TiedParameter

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)

    fn, counter = compiled(lambda m, x: torch.func.grad(loss_of)(Wrap(m), x).inner)
    for seed in range(2):
        module = TiedParameter().initialize(seed)
        assert_close_trees(fn(module, INPUT), torch.func.grad(loss_of)(module, INPUT))
    assert counter.frame_count == 1


def test_replace_inside() -> None:
    def run(module: Any, x: Tensor) -> Any:
        return module.replace(first=module.first.replace(weight=module.first.weight + x.sum()))

    fn, counter = compiled(run)
    module = MLP().initialize(0).eval()
    out = module
    for _ in range(3):
        out = fn(module, INPUT)
        assert_close_trees(out, run(module, INPUT))
        module = tree.map(torch.clone, module)
    assert counter.frame_count == 1
    assert out.mode == out.first.mode == "eval"
