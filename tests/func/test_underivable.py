"""Functions of torch that it has no derivative of, and takes for constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import func

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
