"""What functions with a written derivative reach beside their arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Module, Parameter, func
from tests.bad_input.errors import says

X, W = torch.tensor(1.3), torch.tensor(2.0)
WS, XS = torch.stack([W, 2 * W]), torch.stack([X, 3 * X])
LATER: dict[str, Tensor] = {}


def by_vjp(fun: Callable[[Tensor], Tensor]) -> Any:
    made = func.custom_vjp(fun)
    made.defvjp(lambda x: (fun(x), x), lambda x, g: (g,))
    return made


def by_jvp(fun: Callable[[Tensor], Tensor]) -> Any:
    made = func.custom_jvp(fun)
    made.defjvp(lambda primals, tangents: (fun(*primals), tangents[0]))
    return made


class Scaled(Module):
    by: Parameter

    def times(self, x: Tensor) -> Tensor:
        return self.by * x


def product(w: Tensor, x: Tensor) -> Tensor:
    return w * x


class Holder:
    def __init__(self, w: Tensor) -> None:
        self.inside = [{"w": w}]

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.inside[0]["w"].sum()


def of_a_global(w: Tensor) -> Callable[[Tensor], Tensor]:
    LATER["w"] = w
    return lambda x: LATER["w"].exp() * x


CAPTURES: dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]] = {
    "closure": lambda w: lambda x: w * x,
    "bound self": lambda w: Scaled(w).times,
    "module": lambda w: lambda x: Scaled(w).times(x),
    "partial": lambda w: partial(product, w),
    "default": lambda w: lambda x, w=w: w * x,  # type: ignore[misc]  # of one argument
    "object": Holder,
    "global": of_a_global,
    "inner function": lambda w: lambda x: torch.stack([w * x for _ in range(1)]).sum(),
}
RUNS: dict[str, Callable[[Callable[[Tensor, Tensor], Tensor]], Any]] = {
    "grad": lambda loss: func.grad(loss)(W, X),
    "of both": lambda loss: func.grad(loss, (0, 1))(W, X),
    "torch.func.grad": lambda loss: torch.func.grad(loss)(W, X),
    "backward": lambda loss: loss(W.clone().requires_grad_(), X),
    "vmap of grad": lambda loss: func.vmap(func.grad(loss))(WS, XS),
    "per_sample_grad": lambda loss: func.per_sample_grad(loss)(W, XS),
    "ensemble_grad": lambda loss: func.ensemble_grad(loss)(WS, X),
    "grad of vmap": lambda loss: func.grad(lambda w: func.vmap(partial(loss, w))(XS).sum())(W),
    "jacfwd": lambda loss: func.jacfwd(loss)(W, X),
}


@pytest.mark.parametrize("made", [by_vjp, by_jvp])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_what_is_differentiated_is_refused(made: Any, run: Any) -> None:
    with says(TypeError, "captures a tensor that is", "Pass it", "f(x, model)"):
        run(lambda w, x: made(lambda x: w * x)(w * x))


@pytest.mark.parametrize("capture", CAPTURES.values(), ids=CAPTURES)
def test_by_whatever_way_it_is_captured(capture: Any) -> None:
    with says(TypeError, "captures a tensor that is differentiated", "tensor.detach()"):
        func.grad(lambda w, x: by_vjp(capture(w))(w * x))(W, X)
    with says(TypeError, "captures a tensor that is differentiated", "tensor.detach()"):
        torch.func.grad(lambda w, x: by_vjp(capture(w))(w * x))(W, X)


def test_a_global_that_comes_to_be_differentiated() -> None:
    made = by_vjp(lambda x: SCALE * x)
    x = X.clone().requires_grad_()
    assert torch.autograd.grad(made(x), x)[0] == 1
    try:
        SCALE.requires_grad_()
        with says(TypeError, "captures a tensor that is differentiated"):
            made(x)
    finally:
        SCALE.requires_grad_(False)


SCALE = torch.tensor(2.0)


def detached(w: Tensor, x: Tensor) -> Tensor:
    """The rule of ``x * w`` with a constant ``w``."""
    return by_vjp(lambda x: x * w.detach())(x)  # type: ignore[no-any-return]  # a tensor


def other_part(w: Tensor, x: Tensor) -> Tensor:
    """A function that reaches ``w`` and does not compute with it."""
    pair = {"w": w, "c": W}
    return by_vjp(lambda x: x * pair["c"] * pair["w"].dim() + pair["c"])(x)  # type: ignore[no-any-return]  # a tensor


@pytest.mark.parametrize("loss", [detached, other_part])
def test_what_is_not_differentiated_may_be_captured(loss: Any) -> None:
    """The rule says 1, so of ``w x`` the derivative by ``w`` is ``x``."""
    runs: list[Any] = [func.grad, torch.func.grad, func.jacrev]
    for run in runs:
        torch.testing.assert_close(run(lambda w: loss(w, w * X))(W), X)
    torch.testing.assert_close(func.per_sample_grad(lambda w, x: loss(w, w * x))(W, XS), XS)


@pytest.mark.parametrize("made", ["vjp", "jvp"])
def test_what_the_derivative_captures_is_differentiated_in_its_turn(made: str) -> None:
    def scaled(w: Tensor) -> Any:
        if made == "vjp":
            fun: Any = func.custom_vjp(lambda x: x + 0)
            fun.defvjp(lambda x: (x + 0, x), lambda x, g: (g * w**2,))
        else:
            fun = func.custom_jvp(lambda x: x + 0)
            fun.defjvp(lambda p, t: (p[0] + 0, t[0] * w**2))
        return fun

    grads: list[Any] = [func.grad, torch.func.grad]
    for grad in grads:
        # The derivative by x is w², and that of it is 2 w.
        outer = grad(lambda w, grad=grad: grad(lambda x: scaled(w)(x))(X))
        torch.testing.assert_close(outer(W), 2 * W)
        # Of scaled(w)(w x) by w: w² x.
        torch.testing.assert_close(grad(lambda w: scaled(w)(w * X))(W), W**2 * X)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("made", [by_vjp, by_jvp])
def test_compiled_code_refuses_it_too(made: Any) -> None:
    def loss(w: Tensor, x: Tensor) -> Tensor:
        return made(lambda x: w * x)(w * x)  # type: ignore[no-any-return]  # a tensor

    with says(TypeError, "captures a tensor that is differentiated", "tensor.detach()"):
        parallax.compile(func.grad(loss), backend="eager")(W, X)
    with says(TypeError, "captures a tensor that is differentiated", "tensor.detach()"):
        parallax.compile(func.vmap(func.grad(loss)), backend="eager")(WS, XS)
    with says(TypeError, "captures a tensor that is differentiated"):
        torch.compile(loss, backend="eager", fullgraph=True)(W.clone().requires_grad_(), X)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_code_may_capture_what_is_not_differentiated() -> None:
    def both(w: Tensor) -> list[Tensor]:
        return [func.grad(lambda w, f=f: f(w, w * X))(w) for f in (detached, other_part)]

    torch.testing.assert_close(parallax.compile(both, backend="eager")(W), [X, X])
