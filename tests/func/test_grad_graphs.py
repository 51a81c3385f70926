"""Which graphs a gradient carries: none that nobody asked for, and every captured tensor's."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from parallax import func, tree
from tests.func.nets import Net, X, loss, net


def test_results_have_no_graph_where_nobody_can_ask_for_one() -> None:
    grads, (value, aux) = func.grad_and_value(lambda m: (loss(m), m(X)), has_aux=True)(net())
    for tensor in (*tree.leaves(grads), value, aux):
        assert tensor.grad_fn is None and not tensor.requires_grad


def test_graph_memory_is_freed_at_once() -> None:
    kept: list[Any] = []

    def fn(m: Net) -> Any:
        hidden = m(X).exp()
        kept.append(weakref.ref(hidden))
        return hidden.sum()

    gc.disable()
    try:
        func.grad(fn)(net())
        assert kept[0]() is None
    finally:
        gc.enable()


class Holder:
    def __init__(self, c: Tensor) -> None:
        self.c = c

    def method(self, m: Any) -> Tensor:
        return loss(m) * (self.c**2).sum()


CAPTURED = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)


def test_captured_tensors_stay_differentiable() -> None:
    c = CAPTURED
    cell = lambda m: loss(m) * (c**2).sum()  # noqa: E731  # a closure is the point
    partial_default = lambda m, d=c: loss(m) * (d**2).sum()  # noqa: E731
    for fn in (cell, partial_default, Holder(c).method, lambda m: loss(m) * (CAPTURED**2).sum()):
        total: Any = sum((g**2).sum() for g in tree.leaves(func.grad(fn)(net())))
        (ours,) = torch.autograd.grad(total, c)

        def reference(d: Tensor) -> Any:
            g = torch.func.grad(lambda w: loss(net().replace(weight=w)) * (d**2).sum())(
                net().weight
            )
            b = torch.func.grad(lambda b: loss(net().replace(bias=b)) * (d**2).sum())(net().bias)
            return (g**2).sum() + (b**2).sum()

        torch.testing.assert_close(ours, torch.func.grad(reference)(c.detach()))


class Scaled(torch.autograd.Function):
    """``x`` times the sum of ``k``, whose backward is written by hand."""

    @staticmethod
    def forward(x: Tensor, k: Tensor) -> Tensor:
        return x * k.sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, k = ctx.saved_tensors
        return grads[0] * k.sum(), (grads[0] * x).sum().expand_as(k)


def written_in_place(m: Any, c: Tensor) -> Tensor:
    y: Tensor = m(X).clone()
    y[0] *= c.sum()
    return y.mul_((c * 2)[0]).sum()


def written_into_zeros(m: Any, c: Tensor) -> Any:
    y = torch.zeros(4, dtype=torch.float64)
    y[:2] = c * 2
    return m.weight.sum() * y.unbind(0)[1]


HIDDEN: dict[str, Callable[[Any, Tensor], Any]] = {
    "custom function": lambda m, c: Scaled.apply(m(X), c).sum(),  # type: ignore[no-untyped-call]  # torch's own
    "in place": written_in_place,
    "a view of what was written": written_into_zeros,
    "one of several results": lambda m, c: torch.linalg.slogdet(m.weight * c[0] + torch.eye(3))[1],
    "where": lambda m, c: torch.where(m.weight > 0, m.weight * c[0], m.weight).sum(),
    "a list": lambda m, c: torch.stack([m.weight.sum(), c.sum()]).prod(),
    "a checkpoint": lambda m, c: checkpoint(
        lambda x: (m(x) * c.sum()).sum(), X, use_reentrant=False
    ),
}


@pytest.mark.parametrize("made", [lambda c: c, lambda c: c * 2], ids=["leaf", "made of a leaf"])
@pytest.mark.parametrize("how", HIDDEN)
def test_a_captured_tensor_is_found_wherever_it_enters(how: str, made: Any) -> None:
    fn, model, c = HIDDEN[how], net(), torch.tensor([0.3, 0.6], dtype=torch.float64)

    def slope(c: Tensor) -> Any:
        return (func.grad(lambda m: fn(m, made(c)))(model).weight ** 2).sum()

    leaf = c.clone().requires_grad_()
    (ours,) = torch.autograd.grad(slope(leaf), leaf)
    step = 1e-6 * torch.eye(2, dtype=torch.float64)
    numeric = torch.stack([(slope(c + h) - slope(c - h)) / 2e-6 for h in step])
    torch.testing.assert_close(ours, numeric, rtol=1e-5, atol=1e-6)


def test_dual_numbers_of_autograd_pass_through() -> None:
    model, along = net(), torch.ones(3, 3, dtype=torch.float64)
    with forward_ad.dual_level():
        dual: Any = forward_ad.make_dual(model.weight, along)
        grads: Any = func.grad(loss)(model.replace(weight=dual)).weight
        tangent = forward_ad.unpack_dual(grads).tangent
        factor = forward_ad.make_dual(torch.tensor(2.0), torch.tensor(1.0))
        captured: Any = func.grad(lambda m: loss(m) * factor**2)(model).weight
        by_factor = forward_ad.unpack_dual(captured).tangent

    def of_weight(w: Tensor) -> Tensor:
        return loss(model.replace(weight=w))

    expected: Any = torch.func.jvp(torch.func.grad(of_weight), (model.weight,), (along,))[1]
    torch.testing.assert_close(tangent, expected)
    torch.testing.assert_close(by_factor, 4 * func.grad(loss)(model).weight)


def test_a_captured_tensor_that_does_not_touch_the_gradient_leaves_no_graph_on_it() -> None:
    grads, value = func.grad_and_value(lambda m: loss(m) + CAPTURED.sum())(net())
    assert all(not g.requires_grad for g in tree.leaves(grads))
    assert value.requires_grad


def test_tensors_captured_from_inference_mode() -> None:
    with torch.inference_mode():
        x, model = X.clone(), net()
    expected = func.grad(loss)(net())
    assert tree.allclose(func.grad(lambda m: loss(m, x))(net()), expected)
    assert tree.allclose(func.grad(loss)(model), expected)
    assert tree.allclose(func.vjp(loss, model)[1](torch.ones((), dtype=torch.float64))[0], expected)


def test_a_view_taken_under_no_grad_is_a_constant() -> None:
    def fn(m: Net) -> Tensor:
        with torch.no_grad():
            return m.weight[0, 0]

    model = net()
    assert not func.grad(fn)(model).weight.any()
    assert not torch.func.vmap(lambda _: func.grad(fn)(model).weight)(torch.ones(2)).any()


def test_writing_into_an_argument_is_refused() -> None:
    def fn(x: Tensor) -> Tensor:
        x *= 2
        return x.sum()

    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="in-place"):
        func.grad(fn)(x)
    assert x.equal(torch.ones(3))
    with pytest.raises(RuntimeError, match="in place"):
        func.grad(fn)(torch.ones(3, requires_grad=True) * 1)


STATISTIC = torch.zeros(3, 3, dtype=torch.float64)


class Counting:
    """Writes values that carry a graph into tensors it can reach."""

    def __init__(self, statistic: Tensor) -> None:
        self.kept = {"statistic": statistic}

    def method(self, m: Net) -> Tensor:
        self.kept["statistic"].mul_(0.5).add_(m.weight)
        return loss(m)


def test_values_written_into_captured_tensors_leave_no_graph_on_them() -> None:
    """The graph would grow with every call; torch.func refuses such a write."""
    expected = func.grad(loss)(net())
    weight = net().weight

    def named(m: Net) -> Tensor:
        STATISTIC.mul_(0.5).add_(m.weight)
        return loss(m)

    def filled(statistic: Tensor) -> Callable[[Net], Tensor]:
        def fn(m: Net) -> Tensor:
            statistic.mul_(0.5).add_(m.weight)
            return loss(m)

        return fn

    cell = torch.zeros_like(STATISTIC)
    attribute = torch.zeros_like(STATISTIC)
    cases = [
        (named, STATISTIC),
        (filled(cell), cell),
        (Counting(attribute).method, attribute),
    ]
    for fn, statistic in cases:
        statistic.zero_()
        for _ in range(2):
            assert tree.equal(func.grad(fn)(net()), expected)
        assert not statistic.requires_grad and statistic.equal(1.5 * weight)
        out, pull = func.vjp(fn, net())
        assert not statistic.requires_grad
        assert tree.equal(pull(torch.ones_like(out))[0], expected)


def test_a_graph_that_leads_outside_stays_on_captured_tensors() -> None:
    outside = torch.ones(3, 3, dtype=torch.float64, requires_grad=True)
    statistic = torch.zeros(3, 3, dtype=torch.float64)

    def fn(m: Net) -> Tensor:
        statistic.add_(m.weight * outside)
        return loss(m)

    func.grad(fn)(net())
    (found,) = torch.autograd.grad(statistic.sum(), outside)
    assert found.equal(net().weight)


def test_a_view_that_would_keep_a_graph_is_refused() -> None:
    rows = torch.zeros(3, 3, dtype=torch.float64)[0]

    def fn(m: Net) -> Tensor:
        rows.add_(m.weight[0])
        return loss(m)

    with pytest.raises(RuntimeError, match=r"y\.detach\(\)"):
        func.grad(fn)(net())
