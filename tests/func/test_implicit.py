"""``func.root``, ``fixed_point`` and ``argmin`` against solvers that are differentiated through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Module, Parameter, func, nn, tree
from tests.bad_input.errors import says

GEN = torch.Generator().manual_seed(0)
START = torch.zeros(3, dtype=torch.float64)


def draw(*shape: int) -> Any:
    return 0.3 * torch.randn(shape, generator=GEN, dtype=torch.float64)


class Layer(Module):
    weight: Parameter
    bias: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.weight @ x + self.bias)


LAYER = Layer(draw(3, 3), draw(3))
STACK = tree.stack([LAYER, Layer(draw(3, 3), draw(3))])


def iterate(f: Any, x: Any) -> Any:
    for _ in range(60):
        x = f(x)
    return x


def newton(f: Any, x: Tensor) -> Tensor:
    for _ in range(8):
        x = x - torch.linalg.solve(func.jacrev(f)(x), f(x))
    return x


def descend(f: Any, x: Tensor) -> Tensor:
    for _ in range(150):
        x = x - 0.2 * func.grad(f)(x)
    return x


def apply(x: Tensor, layer: Any) -> Tensor:
    return layer(x)  # type: ignore[no-any-return]  # a tensor


def convex(x: Tensor, layer: Any) -> Tensor:
    found: Tensor = ((x - layer.bias) ** 2).sum() + 0.1 * (x**4).sum() + 0.2 * layer(x).sum()
    return found


def normal(product: Any, right: Tensor) -> Tensor:
    """A solver of the user's own."""
    matrix = torch.stack([product(row) for row in torch.eye(len(right), dtype=right.dtype)], 1)
    found: Tensor = torch.linalg.lstsq(matrix, right[:, None]).solution[:, 0]
    return found


SOLVED: dict[str, tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]] = {
    "fixed_point": (
        lambda m: func.fixed_point(apply, START, (m,), solver=iterate),
        lambda m: iterate(m, START),
    ),
    "root": (
        lambda m: func.root(lambda x, m: m(x) - x, START, (m,), solver=newton),
        lambda m: iterate(m, START),
    ),
    "root, own linear solve": (
        lambda m: func.root(lambda x, m: m(x) - x, START, (m,), solver=newton, linear_solve=normal),
        lambda m: iterate(m, START),
    ),
    "argmin": (
        lambda m: func.argmin(convex, START, (m,), solver=descend),
        lambda m: descend(lambda x: convex(x, m), START),
    ),
    "argmin, cg": (
        lambda m: func.argmin(convex, START, (m,), solver=descend, linear_solve="cg"),
        lambda m: descend(lambda x: convex(x, m), START),
    ),
}


def loss(solution: Any) -> Any:
    return lambda m: (solution(m) ** 3).sum()


def slope(solution: Any) -> Any:
    return func.grad(loss(solution))


def second(solution: Any) -> Any:
    return func.grad(
        lambda m: torch.stack([(g**2).sum() for g in tree.leaves(slope(solution)(m))]).sum()
    )


@pytest.mark.parametrize(("ours", "unrolled"), SOLVED.values(), ids=SOLVED)
def test_values_and_derivatives_are_those_of_the_unrolled_solver(ours: Any, unrolled: Any) -> None:
    torch.testing.assert_close(ours(LAYER), unrolled(LAYER))
    for derivative in (slope, second):
        torch.testing.assert_close(
            tree.leaves(derivative(ours)(LAYER)), tree.leaves(derivative(unrolled)(LAYER))
        )


@pytest.mark.parametrize("name", ["fixed_point", "argmin", "argmin, cg"])
def test_under_vmap(name: str) -> None:
    ours, unrolled = SOLVED[name]
    torch.testing.assert_close(
        tree.leaves(func.vmap(slope(ours))(STACK)), tree.leaves(func.vmap(slope(unrolled))(STACK))
    )
    found = func.grad(lambda s: func.vmap(loss(ours))(s).sum())(STACK)
    expected = func.grad(lambda s: func.vmap(loss(unrolled))(s).sum())(STACK)
    torch.testing.assert_close(tree.leaves(found), tree.leaves(expected))


def few(f: Any, x: Tensor) -> Tensor:
    """As ``iterate``, in a loop that compiles at once."""
    return func.fori_loop(0, 60, lambda _, x: f(x), x)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_it_is_one_graph() -> None:
    def solution(m: Any) -> Any:
        return func.fixed_point(apply, START, (m,), solver=few)

    compiled = parallax.compile(second(solution), backend="aot_eager")
    found = compiled(LAYER)
    expected = second(SOLVED["fixed_point"][1])(LAYER)
    torch.testing.assert_close(tree.leaves(found), tree.leaves(expected))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_on_the_default_backend() -> None:
    def solution(m: Any) -> Any:
        return func.fixed_point(apply, START, (m,), solver=few)

    compiled: Any = parallax.compile(slope(solution))
    found = compiled(LAYER)
    expected = slope(SOLVED["fixed_point"][1])(LAYER)
    torch.testing.assert_close(tree.leaves(found), tree.leaves(expected))


def test_a_tree_is_found_and_nothing_of_the_solver_is_kept() -> None:
    def both(x: Any, m: Any) -> Any:
        return {"a": m(x["b"]), "b": 0.5 * x["a"], "none": None}

    start: Any = {"a": START, "b": START, "none": None}
    seen = []

    def solver(f: Any, x: Any) -> Any:
        seen.append(torch.is_grad_enabled())
        return iterate(f, x)

    weight = LAYER.weight.clone().requires_grad_()
    layer = LAYER.replace(weight=weight)
    found = func.fixed_point(both, start, (layer,), solver=solver)
    (grad,) = torch.autograd.grad(found["b"].sum(), weight)
    expected = iterate(lambda x: both(x, layer), start)
    torch.testing.assert_close(grad, torch.autograd.grad(expected["b"].sum(), weight)[0])
    assert seen == [False] and found["none"] is None


def one(x: Any) -> Any:
    return x


@pytest.mark.parametrize("name", ["root", "fixed_point", "argmin"])
@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"fun": 3}, TypeError, ("fun must be a function",)),
        ({"solver": 3}, TypeError, ("solver must be a function",)),
        ({"init": 3}, TypeError, ("the solution is 3", "torch.tensor(1.0)")),
        ({"init": torch.ones(2).int()}, ValueError, ("no floating tensor", "torch.zeros(n)")),
        ({"args": START}, TypeError, ("args must be a tuple", "(argument,)")),
        ({"args": (nn.Linear(2, 2),)}, parallax.UninitializedError, ("args[0]: Linear.weight",)),
        ({"linear_solve": "lu"}, ValueError, ("'dense' or 'cg'", "Give one of")),
        ({"linear_solve": 3}, TypeError, ("linear_solve='dense'",)),
        ({"solver": lambda f, x: x[:2]}, ValueError, ("what solver returned has shape (2,)",)),
    ],
)
def test_what_is_refused_says_what_to_write(
    name: str, options: Any, error: Any, parts: tuple[str, ...]
) -> None:
    given = {"fun": one, "init": START, "args": (), "solver": iterate, **options}
    with says(error, f"func.{name}", *parts):
        getattr(func, name)(**given)


def captured(layer: Layer) -> Tensor:
    return func.fixed_point(lambda x: layer(x), START, solver=iterate).sum()


def test_what_fun_captures_is_refused_where_it_is_differentiated() -> None:
    tangent = tree.map(torch.ones_like, LAYER)
    for call in (
        lambda: func.grad(captured)(LAYER),
        lambda: torch.func.grad(captured)(LAYER),
        lambda: func.vmap(func.grad(captured))(STACK),
        lambda: func.jvp(captured, (LAYER,), (tangent,)),
        lambda: captured(LAYER.reset(0)),
    ):
        with pytest.raises(TypeError, match=r"fixed_point\(.*\): <lambda> captures a tensor that"):
            call()
    assert captured(LAYER).shape == ()  # where it is a constant
    with torch.no_grad():
        captured(LAYER.reset(0))
    still = tree.map(torch.detach, LAYER)
    assert float(tree.norm(func.grad(lambda layer: captured(still) * layer.bias.sum())(LAYER))) > 0
