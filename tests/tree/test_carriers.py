"""Dataclasses and methods of plain objects: what is a leaf, what is a node, what is refused."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Module, Parameter, func, optim, tree


class Line(Module):
    """A module with a method beside forward."""

    slope: Parameter
    offset: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x + self.offset

    def loss(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return scale * (self(x) ** 2).sum()


def line() -> Any:
    make: Any = Line
    return make(torch.tensor([2.0, 3.0]), torch.tensor([0.5, -0.5]))


def reference(slope: Tensor, offset: Tensor, x: Tensor) -> Tensor:
    return ((slope * x + offset) ** 2).sum()


X = torch.tensor([1.0, -2.0])


@dataclass
class Batch:
    """A dataclass that torch takes apart."""

    x: Tensor
    model: Any
    name: str | None = None


torch.export.register_dataclass(Batch)


@dataclass
class Loose:
    """One that nobody takes apart."""

    x: Any

    def go(self) -> Any:
        return self.x


# -- as leaves ------------------------------------------------------------------------------------


class Part(functools.partial[Any]):
    """A subclass, which is a leaf."""


class Plain:
    """No tree."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def method(self, x: Tensor) -> Tensor:
        return x


def closing() -> Any:
    model = line()
    return functools.partial(lambda x: model(x).sum(), X)


HIDDEN: dict[str, Any] = {
    r"the method method of a Plain.*parallax.registry.register\(Plain, ...\)": lambda: (
        Plain(X).method
    ),
    r"the method forward of a Linear, a torch.nn.Module.*bridge.lift": lambda: (
        torch.nn.Linear(1, 1).forward
    ),
    r"a Part.*Give a functools.partial itself": lambda: Part(Line.loss, line()),
    r"a dataclass Loose.*torch.export.register_dataclass\(Loose\)": lambda: Loose([X]),
    r"the method go of a Loose.*torch.export.register_dataclass\(Loose\)": lambda: Loose([X]).go,
}


@pytest.mark.parametrize("says", HIDDEN)
def test_tensors_that_would_be_left_out_are_told(says: str) -> None:
    subject = {"a": X, "f": HIDDEN[says]()}
    calls: list[Any] = [
        tree.norm, tree.ravel, tree.zeros_like, tree.size, tree.nbytes,
        lambda t: tree.scale(t, 2.0), lambda t: tree.add(t, t), lambda t: tree.lerp(t, t, 0.5),
        lambda t: tree.vdot(t, t), lambda t: tree.to(t, dtype=torch.float64),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match=f"a leaf of the tree is {says}"):
            call(subject)
    for given in (subject, subject["f"]):
        with pytest.raises(TypeError, match=f"func.grad.*argument 0.* is {says}"):
            func.grad(lambda t: X.sum())(given)


WITHOUT = [torch.relu, Plain(3).method, [].append, Loose(3)]


@pytest.mark.parametrize("leaf", WITHOUT)
def test_functions_and_dataclasses_without_tensors_are_leaves(leaf: Any) -> None:
    subject = {"a": torch.tensor([3.0, 4.0]), "f": leaf}
    assert tree.norm(subject).item() == 5.0
    assert tree.scale(subject, 2.0)["f"] is leaf
    assert tree.leaves(subject)[1] is leaf


def test_the_function_of_a_partial_hides_no_tensor() -> None:
    with pytest.raises(TypeError, match="argument 0: func is a function, and only tensors"):
        func.grad(lambda f: f())(closing())
    with pytest.raises(TypeError, match=r"a Linear, which is a torch.nn.Module.*bridge.lift"):
        func.grad(lambda f: f().sum())(functools.partial(torch.nn.Linear(2, 1), X))


# -- dataclasses that torch takes apart -----------------------------------------------------------


def test_a_dataclass_is_a_tree() -> None:
    batch = Batch(X, line())
    assert list(tree.named_leaves(batch)) == ["x", "model.slope", "model.offset"]
    assert tree.select(batch, "model.slope").apply(torch.neg).model.slope.tolist() == [-2.0, -3.0]
    assert tree.select({"b": batch}, "**.offset").paths == ("b.model.offset",)
    assert type(tree.add(batch, batch)) is Batch and tree.equal(
        tree.scale(batch, 2), tree.add(batch, batch)
    )
    stacked = tree.stack([batch, tree.scale(batch, 2.0)])
    out = func.vmap(lambda b: b.model.loss(b.x))(stacked)
    assert torch.allclose(out[1], reference(2 * batch.model.slope, 2 * batch.model.offset, 2 * X))
    assert tree.equal(tree.unstack(stacked)[0], batch)
    flat, unravel = tree.ravel(batch)
    assert flat.shape == (6,) and tree.equal(unravel(flat), batch)
    frozen = tree.select(batch, "model").freeze()
    assert tree.leaves(func.grad(lambda b: b.model.loss(b.x))(frozen).model) == []


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_a_dataclass(compiled: bool) -> None:
    batch = Batch(X, line())

    def gradient(batch: Batch) -> Any:
        return func.grad(lambda b: b.model.loss(b.x))(batch)

    made = (parallax.compile(gradient, backend="eager") if compiled else gradient)(batch)
    slope, offset, x = torch.func.grad(reference, argnums=(0, 1, 2))(
        batch.model.slope, batch.model.offset, X
    )
    torch.testing.assert_close((made.model.slope, made.model.offset, made.x), (slope, offset, x))
    stepped = optim.SGD(0.5).step(batch.model, made.model, optim.SGD(0.5).init(batch.model))[0]
    torch.testing.assert_close(stepped.slope, batch.model.slope - 0.5 * slope)
