"""Functions that cut the graph are told so, and leave none on what they write into."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, Parameter, func

X = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
Y = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
F: Any = torch.autograd.functional


class Scale(Module):
    by: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x


class Whole(torch.autograd.Function):
    """Is handed a module, which autograd does not look into."""

    @staticmethod
    def forward(ctx: Any, m: Any, x: Tensor) -> Any:
        return m(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None, *grad_outputs


def cube(x: Tensor) -> Tensor:
    return (x**3).sum()


def told(x: Tensor) -> Tensor:
    x.requires_grad_(False)
    return (x**2).sum()


CUT: dict[str, Any] = {
    "jacobian": lambda x: F.jacobian(cube, x).sum(),
    "hessian": lambda x: F.hessian(cube, x).sum(),
    "vjp": lambda x: F.vjp(cube, x)[1].sum(),
    "hvp": lambda x: F.hvp(cube, x, X)[1].sum(),
    "requires_grad_(False)": told,
}


@pytest.mark.parametrize("name", CUT)
def test_what_torch_refuses_has_no_gradient_of_zero(name: str) -> None:
    with pytest.raises(RuntimeError, match="requires_grad_"):
        torch.func.grad(CUT[name])(X.clone())
    for transform in (func.grad, func.grad_and_value):
        state = torch.get_rng_state()
        with pytest.raises(RuntimeError, match=r"func.grad.*[Ww]rite"):
            transform(CUT[name])(X.clone())
        assert torch.equal(state, torch.get_rng_state())


def test_a_module_handed_whole_to_an_autograd_function() -> None:
    with pytest.raises(RuntimeError, match=r"give an autograd\.Function tensors"):
        func.grad(lambda m: Whole.apply(m, X).sum())(Scale(Y))  # type: ignore[no-untyped-call]  # torch's


def test_what_keeps_the_graph_and_what_depends_on_nothing_are_differentiated() -> None:
    kept = lambda x: F.jacobian(cube, x, create_graph=True).sum()  # noqa: E731  # short
    torch.testing.assert_close(func.grad(kept)(X), 6 * X)
    calls: list[int] = []

    def constant(x: Tensor) -> Tensor:
        calls.append(1)
        return Y.sum()

    assert torch.equal(func.grad(constant)(X), torch.zeros_like(X))


def scaled(x: Tensor, y: Tensor) -> Tensor:
    y.mul_(x)
    return (y * y).sum()


@pytest.mark.parametrize("name", ["grad", "jacrev", "jacfwd", "hessian", "vjp", "jvp"])
def test_a_write_into_an_argument_that_is_not_differentiated(name: str) -> None:
    def run(lib: Any, y: Tensor) -> Any:
        if name == "vjp":
            return lib.vjp(lambda x: x.sum(), X)[0] + lib.grad(scaled)(X, y)
        if name == "jvp":
            return lib.jacfwd(scaled)(X, y)
        return getattr(lib, name)(scaled)(X, y)

    ours, theirs = Y.clone(), Y.clone()
    torch.testing.assert_close(run(func, ours), run(torch.func, theirs))
    torch.testing.assert_close(ours, theirs)
    assert not ours.requires_grad and ours.grad_fn is None


def test_a_write_into_a_view_is_refused_and_an_outer_graph_is_kept() -> None:
    whole = torch.stack([Y, Y])
    with pytest.raises(RuntimeError, match="a view was written in place"):
        func.grad(scaled)(X, whole[0])
    x, y = X.clone().requires_grad_(), Y.clone()
    func.grad(scaled)(x, y)
    assert y.requires_grad  # somebody differentiates x, and y is made of it
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], Y)
