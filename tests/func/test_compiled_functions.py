"""A user's ``autograd.Function`` in compiled transforms: its backward is the derivative.

The backwards here are no derivatives of the forwards, so that nothing else can give their numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import parallax
from parallax import Module, Parameter, func
from tests.compiling import make_compiled

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

X = torch.tensor([0.5, 1.6], dtype=torch.float64)
ONE = torch.ones_like(X)
ROWS = torch.stack([X, X + 1])


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0]


class Steep(torch.autograd.Function):
    """An exponential whose slope is three times too steep, by the output that it saves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return 3 * grad_outputs[0] * ctx.saved_tensors[0]


class Mixed(torch.autograd.Function):
    """Two results, of which one has no derivative, numbers, attributes, and unneeded gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: float, weight: Tensor, *rest: Any) -> Any:
        ctx.by, ctx.x = by, x
        ctx.save_for_backward(weight)
        positive = x > 0
        ctx.mark_non_differentiable(positive)
        return x * weight * by, positive

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        grad, (weight,) = grad_outputs[0], ctx.saved_tensors
        first = 5 * grad * weight * ctx.by if ctx.needs_input_grad[0] else None
        return first, None, (7 * grad * ctx.x * ctx.by).sum(), None


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides a name
        return 20 * ctx.saved_tensors[0] * grad_outputs[0]


class Still(torch.autograd.Function):
    """Its result has no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = x * 2
        ctx.mark_non_differentiable(found)
        return found

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0]


class Listed(torch.autograd.Function):
    """It is given a list, whose tensors are no arguments."""

    @staticmethod
    def forward(ctx: Any, xs: list[Tensor]) -> Tensor:
        return xs[0] * 2

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None


class Kept(torch.autograd.Function):
    """Keeps its results as attributes, alone and in a list."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        up, down = x.round(), x.floor()
        ctx.up, ctx.lower = up, [down]
        return up, down

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0] * ctx.up + 2 * grad_outputs[1] * ctx.lower[0]


class Net(Module):
    weight: Parameter

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = (called(Rounded, self.weight * x) ** 2).sum()
        return found


def called(function: Any, *args: Any) -> Any:
    return function.apply(*args)


def rounded(x: Tensor) -> Tensor:
    found: Tensor = (called(Rounded, x) ** 2).sum()
    return found


def steep(x: Tensor) -> Tensor:
    found: Tensor = called(Steep, x).sum()
    return found


def square(x: Tensor) -> Tensor:
    found: Tensor = called(Square, x).sum()
    return found


def stepped(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Twice the function, in a loop."""
    start: Any = x.sum() * 0
    found: Tensor = func.scan(lambda c, _: (c + fn(x), c), start, torch.zeros(2, dtype=x.dtype))[0]
    return found


def test_backward_is_the_derivative_in_every_transform() -> None:
    net = Net(ONE)

    def all_of(x: Tensor) -> list[Any]:
        return [
            func.grad(rounded)(x),
            func.grad_and_value(rounded)(x)[0],
            func.vjp(rounded, x)[1](torch.ones((), dtype=x.dtype))[0],
            func.jacrev(rounded)(x),
            func.vmap(func.grad(rounded))(x[None])[0],
            func.grad(lambda x: func.vmap(rounded)(x[None]).sum())(x),
            func.grad(func.checkpoint(rounded))(x),
            func.grad(lambda x: stepped(rounded, x))(x) / 2,
            func.grad(lambda x: net.replace(weight=x)(ONE))(x),
            torch.func.grad(rounded)(x),
            func.grad(lambda net: net(x))(net).weight / x,
        ]

    expected = 2 * X.round()
    compilers: Any = (parallax.compile, torch.compile)
    for compiler in compilers:
        for found in compiler(all_of, backend="aot_eager", fullgraph=True)(X):
            torch.testing.assert_close(found, expected)


def test_arguments_of_every_kind() -> None:
    def loss(x: Tensor, weight: Tensor) -> Tensor:
        out, positive = called(Mixed, x, 3.0, weight, "a flag")
        found: Tensor = (out * positive).sum()
        return found

    def both(x: Tensor, weight: Tensor) -> Any:
        return func.grad(loss, argnums=(0, 1))(x, weight), func.grad(loss, argnums=1)(x, weight)

    weight = torch.tensor(2.0, dtype=torch.float64)
    (x_grad, weight_grad), alone = make_compiled(both, backend="aot_eager")(X, weight)
    torch.testing.assert_close(x_grad, 30 * ONE)
    torch.testing.assert_close(weight_grad, 21 * X.sum())
    torch.testing.assert_close(alone, weight_grad)


@pytest.mark.parametrize("made", [lambda x: called(Still, x), lambda x: called(Listed, [x])])
def test_a_result_without_a_derivative_is_a_constant(made: Callable[[Tensor], Tensor]) -> None:
    def loss(x: Tensor) -> Tensor:
        return (made(x) * x).sum()

    leaf = X.clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    found = make_compiled(func.grad(loss), backend="aot_eager")(X)
    torch.testing.assert_close(found, expected)


def test_results_kept_as_attributes_have_the_derivative_of_the_function() -> None:
    def loss(x: Tensor) -> Tensor:
        up, down = called(Kept, x)
        found: Tensor = (up**2 + down**3).sum()
        return found

    leaf = X.clone().requires_grad_()
    slope = torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0]
    expected = torch.autograd.grad(slope.sum(), leaf)[0]
    second = func.grad(lambda x: func.grad(loss)(x).sum())
    torch.testing.assert_close(make_compiled(second, backend="aot_eager")(X), expected)


def test_second_derivatives_go_through_backward() -> None:
    def second(x: Tensor) -> Any:
        return (
            func.grad(lambda x: func.grad(steep)(x).sum())(x),
            func.hessian(steep)(x).diagonal(),
            func.hvp(steep, (x,), (ONE,))[1][0],
            func.vmap(func.grad(lambda x: func.grad(steep)(x).sum()))(x[None])[0],
        )

    for found in make_compiled(second, backend="aot_eager")(X):
        torch.testing.assert_close(found, 9 * X.exp())
    leaf = X.clone().requires_grad_()
    slope = make_compiled(func.grad(steep), backend="aot_eager")(leaf)
    torch.testing.assert_close(torch.autograd.grad(slope.sum(), leaf)[0], 9 * X.exp())


SECOND: dict[str, Callable[[Tensor], Any]] = {
    "an inner step": lambda x: func.grad(lambda x: square(x - 0.1 * func.grad(square)(x)))(x),
    "hvp": lambda x: func.hvp(square, (x,), (ONE,)),
    "hessian": lambda x: func.hessian(square)(x),
    "jacrev of grad": lambda x: func.jacrev(func.grad(square))(x),
    "under vmap": lambda x: func.vmap(func.grad(lambda x: func.grad(square)(x).sum()))(x[None]),
    "checkpoint": lambda x: func.grad(lambda x: func.grad(func.checkpoint(square))(x).sum())(x),
    "scan": lambda x: func.grad(
        lambda x: func.grad(lambda x: stepped(square, x))(x).sum()
    )(x),
}  # fmt: skip


@pytest.mark.parametrize("way", SECOND)
def test_a_second_derivative_of_what_has_one_is_refused(way: str) -> None:
    with pytest.raises(RuntimeError, match=r"second derivative of Square was asked for.*detach"):
        make_compiled(SECOND[way], backend="aot_eager")(X)


def test_a_second_derivative_outside_of_compiled_code_is_refused() -> None:
    def slopes(x: Tensor) -> Any:
        through = func.grad(lambda x: called(Square, called(Square, x)).sum())(x)
        return (
            through,
            func.grad(square)(x),
            func.grad(lambda x: (x * func.grad(square)(X)).sum())(x),
        )

    compiled = parallax.compile(slopes, backend="aot_eager")
    leaf = X.clone().requires_grad_()
    found = [compiled(x) for x in (X, leaf)]  # right, wherever a second may be asked for
    for through, first, beside in found:
        torch.testing.assert_close(first.detach(), 20 * X)
        torch.testing.assert_close(beside.detach(), 20 * X)
        torch.testing.assert_close(through.detach(), 20 * X * 20 * X**2)
    first = found[1][1]
    with pytest.raises(RuntimeError, match="second derivative of Square was asked for"):
        torch.autograd.grad(first.sum(), leaf, retain_graph=True)


def test_a_raw_compiled_meta_gradient_is_refused() -> None:
    compiled = torch.compile(SECOND["an inner step"], backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="second derivative of Square was asked for"):
        compiled(X)
