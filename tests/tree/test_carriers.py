"""Bound methods, partials and dataclasses: what is captured, what is a leaf, what is a node."""

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


# -- as functions ---------------------------------------------------------------------------------


def test_a_bound_method_is_a_function_of_what_is_left() -> None:
    model = line()
    expected = torch.func.grad(reference, argnums=2)(model.slope, model.offset, X)
    part = functools.partial(model.loss, scale=2.0)
    engines: list[Any] = [lambda f: f, lambda f: parallax.compile(f, backend="eager")]
    for engine in engines:
        torch.testing.assert_close(engine(func.grad(model.loss))(X), expected)
        torch.testing.assert_close(engine(func.grad(part))(X), 2 * expected)
    assert torch.equal(
        func.per_sample_grad(model.loss, in_dims=(0,))(X[None])[0], func.grad(model.loss)(X)
    )


def test_of_the_function_of_the_class_the_module_is_an_argument() -> None:
    model = line()
    grads = func.grad(Line.loss)(model, X)
    slope, offset = torch.func.grad(reference, argnums=(0, 1))(model.slope, model.offset, X)
    torch.testing.assert_close((grads.slope, grads.offset), (slope, offset))
    part = func.grad(functools.partial(Line.loss, x=X))(model)
    assert tree.equal(part, grads)


@pytest.mark.parametrize("bind", [lambda m: m.loss, lambda m: functools.partial(Line.loss, m)])
def test_what_is_captured_is_differentiated_from_outside(bind: Any) -> None:
    model = line()

    def outer(model: Any) -> Any:
        return (func.grad(bind(model))(X) ** 2).sum()

    def expected(slope: Tensor, offset: Tensor) -> Any:
        return (torch.func.grad(reference, argnums=2)(slope, offset, X) ** 2).sum()

    slope, offset = torch.func.grad(expected, argnums=(0, 1))(model.slope, model.offset)
    for transform in (func.grad(outer), torch.func.grad(outer)):
        grads = transform(model)
        torch.testing.assert_close((grads.slope, grads.offset), (slope, offset))


def test_a_compiled_function_of_a_method_has_the_values_of_its_module() -> None:
    step = parallax.compile(lambda f, x: f(x), backend="eager")
    for factor in (1.0, 3.0):
        model = tree.scale(line(), factor)
        assert torch.equal(step(model.loss, X), model.loss(X))
        assert torch.equal(step(functools.partial(model.loss, scale=2.0), X), model.loss(X, 2.0))


# -- as leaves ------------------------------------------------------------------------------------


def bound() -> Any:
    return functools.partial(Line.loss, line())


HIDDEN: dict[str, Any] = {
    r"the method loss of a Line.*lambda module, x: module.loss\(x\)": lambda: line().loss,
    r"a partial of loss.*lambda module, x: loss\(module, x\)": bound,
    r"a partial of loss": lambda: functools.partial(line().loss, scale=2.0),
    r"a dataclass Loose.*torch.export.register_dataclass\(Loose\)": lambda: Loose([X]),
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


WITHOUT = [torch.relu, functools.partial(torch.sum, dim=0), [].append, Loose(3)]


@pytest.mark.parametrize("leaf", WITHOUT)
def test_functions_and_dataclasses_without_tensors_are_leaves(leaf: Any) -> None:
    subject = {"a": torch.tensor([3.0, 4.0]), "f": leaf}
    assert tree.norm(subject).item() == 5.0
    assert tree.scale(subject, 2.0)["f"] is leaf
    assert tree.leaves(subject)[1] is leaf


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
