"""Gradients step after step, and gradients of steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import func, tree
from tests.func.nets import Twice, X, loss, net

GROWS = "16 updates in a row were recorded in one graph"


def hundred_steps(how: str) -> list[Tensor]:
    """The leaves of a model and a velocity after steps with gradients by ``func.grad``."""
    model: Any = Twice(net(0), net(1))
    model = model.reset(0) if how == "reset once" else model.train(0)
    velocity = tree.zeros_like(model)
    for step in range(100):
        if how == "reset every step":
            model = model.reset(step + 1)
        grads = func.grad(loss)(model)
        if how == "clipped":
            grads = tree.map(lambda g: g.clamp(-1, 1), grads)
        velocity = velocity.update(lambda v, g: 0.9 * v + g, grads)
        model = model.update(lambda p, v: p - 0.01 * v, velocity)
    return tree.leaves(model) + tree.leaves(velocity)


@pytest.mark.parametrize("how", ["train", "clipped"])
def test_a_hundred_steps_leave_no_graph(how: str) -> None:
    # https://github.com/pytorch/pytorch/issues/134612
    for leaf in hundred_steps(how):
        assert leaf.grad_fn is None


@pytest.mark.parametrize("how", ["reset once", "reset every step"])
def test_a_loop_that_keeps_a_graph_is_warned_once_for_each_tree(how: str) -> None:
    with pytest.warns(UserWarning, match=GROWS) as caught:
        hundred_steps(how)
    lines = [warning.lineno for warning in caught]
    assert len(lines) == len(set(lines)) == 2  # of the velocity and of the model
    assert all(warning.filename == __file__ for warning in caught)


def test_a_fresh_reset_in_each_step_is_not_warned() -> None:
    model = net()
    for step in range(30):
        model = model.reset(step)
        model = model.update(lambda p, g: p - 0.1 * g, func.grad(loss)(model))
    assert all(leaf.grad_fn is None for leaf in tree.leaves(model.reset(30)))


def unrolled(leaves: dict[str, Tensor], x: Tensor) -> Tensor:
    """What ``Twice`` of ``net(0)`` and ``net(1)`` computes, of leaves by path."""
    for name in ("first", "second"):
        weight, bias, scale = (leaves[f"{name}.{leaf}"] for leaf in ("weight", "bias", "scale"))
        x = torch.tanh(x @ weight * scale + bias)
    return x


def test_the_loop_computes_the_same_however_it_is_prepared() -> None:
    starts = tree.named_leaves(Twice(net(0), net(1)))
    weights = {path: leaf for path, leaf in starts.items() if path.endswith(("weight", "bias"))}
    for _ in range(5):
        grads = torch.func.grad(lambda w: loss(lambda x: unrolled(starts | w, x)))(weights)
        weights = {path: weight - 0.1 * grads[path] for path, weight in weights.items()}
    preparations: list[Any] = [lambda m: m.train(0), lambda m: m.reset(0), lambda m: m]
    for prepare in preparations:
        model: Any = prepare(Twice(net(0), net(1)))
        for _ in range(5):
            model = model.update(lambda p, g: p - 0.1 * g, func.grad(loss)(model))
        for path, leaf in tree.named_leaves(model).items():
            torch.testing.assert_close(leaf.detach(), (starts | weights)[path])


def test_going_backward_through_a_gradient_of_a_reset_tree_is_exact() -> None:
    model = net().reset(0)
    penalty: Any = sum((g**2).sum() for g in tree.leaves(func.grad(loss)(model)))
    penalty.backward()
    reference = torch.func.grad(
        lambda w: sum((g**2).sum() for g in torch.func.grad(
            lambda ws: loss(net().replace(weight=ws[0], bias=ws[1])))(w))
    )((net().weight, net().bias))  # fmt: skip
    torch.testing.assert_close(model.grad().weight, reference[0])
    torch.testing.assert_close(model.grad().bias, reference[1])


@pytest.mark.parametrize("prepare", [lambda m: m, lambda m: m.reset(0)], ids=["plain", "reset"])
@pytest.mark.parametrize("steps", [1, 3])
def test_meta_learning_is_exact_to_second_order(prepare: Any, steps: int) -> None:
    # The first-order approximation would drop the derivative of the inner gradient.
    def adapted(model: Any) -> Tensor:
        for _ in range(steps):
            grads = func.grad(loss)(model)
            model = model.update(lambda p, g: p - 0.1 * g, grads)
        return loss(model, X.flip(0) * 2)

    model: Any = net()

    def reference(weights: dict[str, Tensor]) -> Tensor:
        for _ in range(steps):
            grads = torch.func.grad(lambda w: loss(model.replace(**w)))(weights)
            weights = {name: w - 0.1 * grads[name] for name, w in weights.items()}
        return loss(model.replace(**weights), X.flip(0) * 2)

    expected = torch.func.grad(reference)({"weight": model.weight, "bias": model.bias})
    grads = func.grad(adapted)(prepare(model))
    torch.testing.assert_close(grads.weight, expected["weight"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grads.bias, expected["bias"], atol=1e-6, rtol=1e-6)
    raw = torch.func.grad(lambda w: adapted(model.replace(weight=w)))(model.weight)
    torch.testing.assert_close(raw, expected["weight"], atol=1e-6, rtol=1e-6)


def test_a_learned_rate_inside_update_is_differentiated() -> None:
    model = net()

    def adapted(rate: Tensor) -> Tensor:
        grads = func.grad(loss)(model)
        return loss(model.update(lambda p, g: p - rate * g, grads))

    rate = torch.tensor(0.1, dtype=torch.float64)
    slope = func.grad(adapted)(rate)
    step = 1e-6
    with torch.no_grad():
        numeric = (adapted(rate + step) - adapted(rate - step)) / (2 * step)
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-8)
