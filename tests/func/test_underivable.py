"""Functions of torch that it has no derivative of, and takes for constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.signal import windows

import parallax
from parallax import func
from parallax._compat import underivable

X = torch.tensor([0.5, 1.5, 2.5])
S = torch.special

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "airy_ai": S.airy_ai,
    "bessel_j0": S.bessel_j0,
    "bessel_y1": S.bessel_y1,
    "modified_bessel_k0": S.modified_bessel_k0,
    "scaled_modified_bessel_k1": S.scaled_modified_bessel_k1,
    "spherical_bessel_j0": S.spherical_bessel_j0,
    "chebyshev_polynomial_t": lambda x: S.chebyshev_polynomial_t(x, 3),
    "hermite_polynomial_he": lambda x: S.hermite_polynomial_he(x, torch.tensor([1, 2, 3])),
    "legendre_polynomial_p": lambda x: S.legendre_polynomial_p(x, 2),
}


def beside(x: Tensor) -> Tensor:
    """A number that depends on the argument in another way, too."""
    found: Tensor = (S.bessel_j0(x) * x).sum()
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_derivative_is_refused_by_name(name: str) -> None:
    match = f"torch has no derivative of torch.special.{name},"
    with pytest.raises(RuntimeError, match=match):
        func.grad(lambda x: FUNCTIONS[name](x).sum() + x.sum())(X)
    with pytest.raises(RuntimeError, match=match):
        func.jvp(FUNCTIONS[name], (X,), (X,))


@pytest.mark.parametrize(
    "derivative",
    [lambda: func.vjp(beside, X), lambda: func.hvp(beside, (X,), (X,)),
     lambda: func.hessian(beside)(X), lambda: func.vmap(func.grad(beside))(X[None]),
     lambda: func.grad(lambda x: func.vmap(beside)(x[None]).sum())(X),
     lambda: func.jet(beside, (X,), ((X, None),)), lambda: func.linearize(beside, X),
     lambda: func.per_sample_grad(lambda w, x: beside(w * x))(X, X[None])],
)  # fmt: skip
def test_so_is_every_other(derivative: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"no derivative of torch\.special\.bessel_j0"):
        derivative()


RANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "linspace": lambda x: torch.linspace(x[0], x[1], 4),
    "linspace of numbers": lambda x: torch.linspace(0, x[1], 4),
    "logspace": lambda x: torch.logspace(x[0], 2.0, 4, 3.0),
}


@pytest.mark.parametrize("name", RANGES)
def test_so_are_ranges_between_tensors(name: str) -> None:
    def total(x: Tensor) -> Tensor:
        return RANGES[name](x).sum() * x.sum()

    derivatives: list[Callable[[], Any]] = [
        lambda: func.grad(total)(X), lambda: func.jvp(total, (X,), (X,)),
        lambda: func.vmap(func.grad(total))(X[None]), lambda: func.hessian(total)(X),
        lambda: func.grad(lambda x: func.vmap(total)(x[None]).sum())(X),
        lambda: compiled(func.grad(total), raw=False)(X),
    ]  # fmt: skip
    for derivative in derivatives:
        with pytest.raises(RuntimeError, match=r"\* torch\.arange\(steps\) / \(steps - 1\)"):
            derivative()


def test_so_is_a_window_that_is_made_of_one() -> None:
    with pytest.raises(RuntimeError, match=r"torch\.linspace computes without a graph"):
        func.grad(lambda std: windows.gaussian(5, std=std).sum())(X[0])


def test_ranges_of_constants_are_computed() -> None:
    expected = torch.linspace(0.5, 1.5, 4)

    def constant(x: Tensor) -> Tensor:
        ranges = torch.linspace(X[0], X[1], 4) + torch.linspace(x[0].detach(), x[1].detach(), 4)
        return (ranges * x.sum()).sum()

    torch.testing.assert_close(func.grad(constant)(X), (2 * expected.sum()).expand(3))
    mapped = torch.vmap(lambda x: torch.linspace(x[0], x[1], 4))(X[None])
    torch.testing.assert_close(mapped, expected[None])
    leaf = X.clone().requires_grad_()
    assert not torch.linspace(leaf[0], leaf[1], 4).requires_grad  # torch's own, as it was
    assert torch.linspace(X[0], 1, 4, dtype=torch.float64).dtype is torch.float64


def test_what_is_not_differentiated_is_computed() -> None:
    value = S.bessel_j0(X)
    assert torch.equal(func.grad(lambda x: (S.bessel_j0(X) * x).sum())(X), value)
    assert torch.equal(func.grad(lambda x: (S.bessel_j0(x.detach()) * x).sum())(X), value)

    def without_graph(x: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = S.bessel_j0(x)
        return found

    assert torch.equal(func.grad(lambda x: (without_graph(x) * x).sum())(X), value)


def test_torch_itself_does_what_it_did() -> None:
    func.grad(lambda x: x.sum())(X)
    leaf = X.clone().requires_grad_()
    beside(leaf).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, S.bessel_j0(X))
    torch.testing.assert_close(torch.func.grad(beside)(X), S.bessel_j0(X))
    torch.testing.assert_close(S.bessel_j0(X, out=torch.empty(3)), S.bessel_j0(X))


def test_a_rule_of_ones_own_is_taken() -> None:
    bessel = func.custom_vjp(S.bessel_j0)
    bessel.defvjp(lambda x: (S.bessel_j0(x), x), lambda x, g: (-g * S.bessel_j1(x),))
    torch.testing.assert_close(func.grad(lambda x: bessel(x).sum())(X), -S.bessel_j1(X))
    slopes = func.vmap(func.grad(lambda x: bessel(x).sum()))(X[None])
    torch.testing.assert_close(slopes[0], -S.bessel_j1(X))


# -- compiled -----------------------------------------------------------------------------------


def compiled(fn: Callable[[Tensor], Any], raw: bool) -> Callable[[Tensor], Any]:
    compile_: Any = torch.compile if raw else parallax.compile
    return compile_(fn, backend="aot_eager", fullgraph=True)  # type: ignore[no-any-return]  # a function


DIFFERENTIATED: dict[str, Callable[[Tensor], Any]] = {
    "grad": func.grad(beside),
    "vmap of vjp": func.vmap(lambda x: func.vjp(beside, x[None])[1](x)),
    "jvp": lambda x: func.jvp(beside, (x,), (x,)),
    "jet": lambda x: func.jet(beside, (x,), ((x, None),)),
    "linearize": lambda x: func.linearize(beside, x)[1](x),
    "in a scan": func.grad(lambda x: func.scan(lambda c, r: (c + S.airy_ai(r), c), x[0], x)[0]),
    "of another level": func.grad(lambda y: func.grad(lambda x: (x * S.airy_ai(y)).sum())(X).sum()),
}


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_a_compiled_derivative_is_refused(name: str, raw: bool) -> None:
    with pytest.raises(RuntimeError, match=r"no derivative of torch\.special\.(bessel_j0|airy_ai)"):
        compiled(DIFFERENTIATED[name], raw)(X)


@pytest.mark.parametrize("raw", [False, True])
def test_compiled_what_is_not_differentiated_is_computed(raw: bool) -> None:
    def all_allowed(x: Tensor) -> Tensor:
        with torch.no_grad():
            without = S.bessel_j0(x)
        factor: Tensor = without + S.bessel_j0(x.detach()) + S.bessel_j0(X)
        return (factor * x).sum()

    torch.testing.assert_close(compiled(func.grad(all_allowed), raw)(X), 3 * S.bessel_j0(X))


j0 = func.custom_vjp(S.bessel_j0)
j1 = func.custom_vjp(S.bessel_j1)
j0.defvjp(lambda x: (j0(x), x), lambda x, g: (-g * j1(x),))
j1.defvjp(lambda x: (j1(x), x), lambda x, g: (g * (j0(x) - j1(x) / x),))


class Bessel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        found: Tensor = S.bessel_j0(x)
        return found

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        found: Tensor = -cotangents[0] * S.bessel_j1(ctx.saved_tensors[0])
        return found


def applied(x: Tensor) -> Tensor:
    found: Tensor = Bessel.apply(x).sum()  # type: ignore[no-untyped-call]  # it is torch's
    return found


@pytest.mark.parametrize("raw", [False, True])
def test_compiled_rules_may_call_them(raw: bool) -> None:
    slope = -S.bessel_j1(X)
    curve = -(S.bessel_j0(X) - S.bessel_j1(X) / X)

    def all_ways(x: Tensor) -> tuple[Tensor, ...]:
        by_rule: Callable[[Tensor], Tensor] = lambda x: j0(x).sum()  # noqa: E731
        again = func.grad(lambda x: func.checkpoint(by_rule)(x))(x)
        return func.grad(applied)(x), again, func.grad(lambda x: func.grad(by_rule)(x).sum())(x)

    found = compiled(all_ways, raw)(X)
    torch.testing.assert_close(found, (slope, slope, curve))


def test_compiled_second_derivatives_of_such_rules_are_refused() -> None:
    twice = func.grad(lambda x: func.grad(applied)(x).sum())
    with pytest.raises(RuntimeError, match=r"no derivative of torch\.special\.bessel_j1"):
        compiled(twice, raw=False)(X)


@pytest.mark.parametrize("raw", [False, True])
def test_a_compiled_function_is_refused_within_a_derivative(raw: bool) -> None:
    func.grad(torch.sum)(X)
    value, leaf = compiled(beside, raw), X.clone().requires_grad_()
    slope = torch.autograd.grad(value(leaf), leaf)[0]
    torch.testing.assert_close(slope, S.bessel_j0(X))  # as torch has it
    with pytest.raises(RuntimeError, match=r"no derivative of torch\.special\.bessel_j0"):
        func.grad(value)(X)
    rule = compiled(lambda x: j0(x).sum(), raw)
    torch.testing.assert_close(func.grad(rule)(X), -S.bessel_j1(X))


def test_the_first_derivative_of_a_process_may_be_within_a_vmap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(underivable, "_libraries", [])
    with pytest.raises(RuntimeError, match=r"no derivative of torch\.special\.bessel_j0"):
        torch.vmap(func.grad(lambda x: S.bessel_j0(x) + x))(X)
    assert underivable._libraries
