"""Functions whose backward is marked with ``once_differentiable``: a second derivative raises.

torch gives their gradient no graph that leads to what it was computed from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from parallax import func

X = torch.tensor([1.0, 2.0], dtype=torch.float64)
ONE = torch.ones_like(X)
BOTH = torch.stack([X, X + 1])


class Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides a name
        return 3 * ctx.saved_tensors[0] ** 2 * grad_outputs[0]


class Kept(Cube):
    """Keeps what forward computed, which has no graph."""

    @staticmethod
    def forward(x: Tensor) -> Any:
        return x * x * x, 3 * x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # as above
        return ctx.saved_tensors[0] * grad_outputs[0]


class Listed(torch.autograd.Function):
    """Keeps it in a list, and its backward under the other name."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slopes = [3 * x * x]
        return x * x * x

    @staticmethod
    @once_differentiable
    def vjp(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # as above
        return ctx.slopes[0] * grad_outputs[0]


def mixed(x: Tensor) -> Tensor:
    """A cube by the function and one by operators, so that a part of each derivative is known."""
    cubes: Tensor = Cube.apply(x)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return (cubes + x**3).sum()


def slopes(x: Tensor) -> Tensor:
    return func.grad(mixed)(x)


def pulled(slope: Tensor) -> Tensor:
    return func.vjp(mixed, X)[1](slope)[0].sum()


def recorded(x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(slopes(x).sum(), x)[0]


SECOND: dict[str, Callable[[], Any]] = {
    "grad of grad": lambda: func.grad(lambda x: slopes(x).sum())(X),
    "hvp": lambda: func.hvp(mixed, (X,), (ONE,)),
    "hessian": lambda: func.hessian(mixed)(X),
    "hessian_matrix": lambda: func.hessian_matrix(mixed)(X),
    "jet": lambda: func.jet(mixed, (X,), ((ONE, ONE),)),
    "laplacian": lambda: func.laplacian(mixed)(X),
    "of a cotangent": lambda: func.grad(pulled)(torch.ones((), dtype=torch.float64)),
    "by the tape": lambda: recorded(X),
    "under vmap": lambda: func.vmap(func.grad(lambda x: slopes(x).sum()))(BOTH),
    "around vmap": lambda: func.grad(lambda x: func.vmap(slopes)(x).sum())(BOTH),
    "of a checkpoint": lambda: func.grad(lambda x: func.grad(func.checkpoint(mixed))(x).sum())(X),
    "of per-sample gradients": lambda: func.grad(
        lambda w: func.per_sample_grad(lambda w, x: mixed(w * x))(w, BOTH).sum()
    )(X),
}


@pytest.mark.parametrize("way", SECOND)
def test_a_second_derivative_names_the_function(way: str) -> None:
    with pytest.raises(RuntimeError, match=r"second derivative of Cube was asked for.*detach"):
        SECOND[way]()


def through(kind: Any, x: Tensor) -> Tensor:
    out: Any = kind.apply(x)
    cubes: Tensor = out[0] if kind is Kept else out
    return (cubes + x**3).sum()


@pytest.mark.parametrize("kind", [Kept, Listed])
def test_what_forward_computed_leads_to_the_inputs(kind: Any) -> None:
    def slope(x: Tensor) -> Tensor:
        found: Tensor = func.grad(lambda x: through(kind, x))(x).sum()
        return found

    leaf = X.clone().requires_grad_()
    assert torch.equal(func.grad(lambda x: through(kind, x))(X), 6 * X**2)
    ways: list[Callable[[], Any]] = [
        lambda: func.grad(slope)(X),
        lambda: func.grad(slope)(2 * leaf),
        lambda: torch.autograd.grad(slope(leaf), leaf),
        lambda: torch.autograd.grad(slope(2 * leaf), leaf),
        lambda: func.hvp(lambda x: through(kind, x), (2 * leaf,), (ONE,)),
    ]
    for way in ways:
        with pytest.raises(RuntimeError, match=f"second derivative of {kind.__name__} was asked"):
            way()


def test_a_linear_approximation_is_not_silently_constant() -> None:
    with pytest.raises(NotImplementedError, match="jvp"):
        func.linearize(mixed, X)[1](ONE)


def test_first_derivatives_stay_as_they_are() -> None:
    expected = 6 * X**2
    assert torch.equal(slopes(X), expected)
    assert torch.equal(slopes(X.clone().requires_grad_()), expected)
    assert torch.equal(func.vmap(slopes)(BOTH), 6 * BOTH**2)
    # A second one that does not lead through the function.
    assert torch.equal(func.grad(lambda x: (x * slopes(X)).sum())(X), expected)


def test_forward_mode_goes_through_the_operators_of_backward() -> None:
    class Tangent(Cube):
        @staticmethod
        def jvp(ctx: Any, *grad_inputs: Any) -> Any:
            return grad_inputs[0]

    slope = func.grad(lambda x: Tangent.apply(x).sum())  # type: ignore[no-untyped-call]  # as above
    assert torch.equal(func.jvp(slope, (X,), (ONE,))[1], 6 * X)


def test_a_distribution_of_torch() -> None:
    def drawn(concentration: Tensor) -> Tensor:
        return torch.distributions.Dirichlet(concentration).rsample()[0]

    assert func.grad(drawn)(X).abs().sum() > 0
    with pytest.raises(RuntimeError, match="second derivative of _Dirichlet"):
        func.hvp(drawn, (X,), (ONE,))


def raw(x: Tensor) -> Tensor:
    """A gradient that ``func`` does not take."""
    found: Tensor = torch.func.grad(mixed)(x)
    return found


@pytest.mark.parametrize(
    "derivative",
    [lambda: func.grad(lambda x: raw(x).sum())(X), lambda: func.jacrev(raw)(X),
     lambda: func.vmap(func.grad(lambda x: raw(x).sum()))(BOTH),
     lambda: func.grad(lambda x: func.vmap(raw)(x).sum())(BOTH)],
)  # fmt: skip
def test_of_a_gradient_of_torch_func(derivative: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match="a second derivative of Cube was asked for"):
        derivative()


def test_a_gradient_of_torch_func_may_be_a_constant() -> None:
    torch.testing.assert_close(func.vmap(raw)(BOTH), 6 * BOTH**2)
    torch.testing.assert_close(func.grad(lambda x: (raw(x.detach()) * x).sum())(X), 6 * X**2)
    torch.testing.assert_close(func.grad(lambda x: (raw(X) * x).sum())(X), 6 * X**2)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="not in this release")
def test_a_loss_in_chunks_has_one_derivative_only() -> None:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=1)

    def loss(x: Tensor) -> Tensor:
        whole: Tensor = F.linear_cross_entropy(x, BOTH, torch.tensor([0, 1]), options=options)
        return whole + (x * x).sum()

    plain = func.grad(lambda x: F.cross_entropy(x @ BOTH.mT, torch.tensor([0, 1])))(BOTH)
    torch.testing.assert_close(func.grad(loss)(BOTH), plain + 2 * BOTH)
    twice = func.grad(lambda x: func.grad(loss)(x).sin().sum())
    with pytest.raises(RuntimeError, match=r"linear_cross_entropy with options.*Leave options out"):
        twice(BOTH)
