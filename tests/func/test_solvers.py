"""Solvers that are taken where none is given: against closed forms, in every mode, and refusals."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import func, nn, tree

DOUBLE = torch.float64
A = torch.tensor([2.0, 3.0], dtype=DOUBLE)
X = torch.ones(2)


def square_root(a: Tensor) -> Tensor:
    return func.root(lambda x, a: x**2 - a, torch.ones_like(a), (a,))


def mean_of_both(a: Tensor) -> Tensor:
    """The fixed point of ``0.5 * x + a`` is ``2 * a``."""
    return func.fixed_point(lambda x, a: 0.5 * x + a, torch.zeros_like(a), (a,))


def cube_root(a: Tensor) -> Tensor:
    return func.argmin(lambda x, a: (x**4 / 4 - a * x).sum(), torch.full_like(a, 5.0), (a,))


CASES: dict[Any, Any] = {
    square_root: lambda a: a.sqrt(),
    mean_of_both: lambda a: 2 * a,
    cube_root: lambda a: a ** (1 / 3),
}


@pytest.mark.parametrize(("solution", "closed"), CASES.items())
def test_solutions_and_derivatives_are_those_of_the_closed_form(solution: Any, closed: Any) -> None:
    torch.testing.assert_close(solution(A), closed(A))
    torch.testing.assert_close(solution(A.float()), closed(A.float()))

    def total(fn: Any) -> Any:
        return lambda a: fn(a).sum()

    expected = torch.func.grad(total(closed))(A)
    torch.testing.assert_close(func.grad(total(solution))(A), expected)
    torch.testing.assert_close(func.vmap(func.grad(solution))(A), expected)
    second = torch.func.hessian(total(closed))(A)
    torch.testing.assert_close(func.hessian(total(solution))(A), second)


@pytest.mark.parametrize(
    "solution",
    [
        mean_of_both,
        pytest.param(square_root, marks=pytest.mark.slow),
        pytest.param(cube_root, marks=pytest.mark.slow),
    ],
)
def test_compiled(fresh_dynamo: None, solution: Any) -> None:
    found = parallax.compile(func.vmap(func.grad(solution)), backend="eager")(A)
    torch.testing.assert_close(found, torch.func.vmap(torch.func.grad(CASES[solution]))(A))


def test_anderson_needs_fewer_calls_than_plain_iteration() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.12 * torch.randn(50, 50, dtype=DOUBLE, generator=generator)
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.tanh(z @ weight + 1)

    found = func.anderson(f, torch.zeros(50, dtype=DOUBLE))
    torch.testing.assert_close(f(found), found)
    accelerated, calls, z = calls, 0, torch.zeros(50, dtype=DOUBLE)
    while (f(z) - z).norm() > 1e-11 and calls < 2000:
        z = f(z)
    assert accelerated < calls / 2


def test_newton_and_its_damped_form_come_from_far_away() -> None:
    start = torch.tensor([-1.2, 1.0], dtype=DOUBLE)
    rosenbrock = lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2  # noqa: E731  # short
    torch.testing.assert_close(func.damped_newton(rosenbrock, start), torch.ones(2, dtype=DOUBLE))
    # Whole steps of Newton's method go further away here.
    root = func.newton(torch.atan, torch.tensor(3.0, dtype=DOUBLE))
    torch.testing.assert_close(root, torch.zeros((), dtype=DOUBLE))


def test_trees_are_solved_for() -> None:
    layer = nn.Linear(2, 1).initialize(0, dtype=DOUBLE)
    x = torch.randn(9, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0], [2.0]], dtype=DOUBLE) - 3
    found = func.argmin(lambda m, y: (m(x) - y).square().mean(), layer, (y,))
    torch.testing.assert_close(found.weight, torch.tensor([[1.0, 2.0]], dtype=DOUBLE))
    torch.testing.assert_close(found.bias, torch.tensor([-3.0], dtype=DOUBLE))
    assert tree.structure(found) == tree.structure(layer)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: func.root(lambda x: x**2 + 1, torch.tensor(0.5)), "newton"),
        (lambda: func.fixed_point(lambda x: x + 1, torch.tensor(0.0)), "anderson"),
        (lambda: func.argmin(lambda x: -(x**2), torch.tensor(0.1)), "damped_newton"),
        (lambda: func.root(lambda x: x * torch.nan, torch.tensor(0.1)), "newton"),
    ],
)
def test_where_none_is_found_an_error_says_what_to_write(call: Any, name: str) -> None:
    with pytest.raises(
        RuntimeError, match=rf"func.{name}: found no solution in \d+ steps.*{name},"
    ):
        call()


def test_a_member_without_a_solution_is_nan() -> None:
    found = func.vmap(square_root)(torch.tensor([4.0, -1.0]))
    torch.testing.assert_close(found, torch.tensor([2.0, torch.nan]), equal_nan=True)


def test_complex_numbers_are_left_to_other_solvers() -> None:
    with pytest.raises(TypeError, match=r"real numbers, got torch.complex64.*solver=solve"):
        func.root(lambda x: x**2 + 1, torch.tensor(1j))


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: func.anderson(torch.cos, X, history=0), r"history=\).*Write history=5"),
        (lambda: func.newton(torch.cos, X, max_steps="3"), r"max_steps=\).*Write max_steps="),  # type: ignore[arg-type]
        (lambda: func.newton(torch.cos, X, tol=-1.0), r"tol=\).*Write tol=1e-5"),
        (lambda: func.anderson(lambda x: x.repeat(2), X), "takes a tree of 2 numbers and returned"),
        (lambda: func.newton(lambda x: x.repeat(2), X), "takes a tree of 2 numbers and returned"),
        (lambda: func.damped_newton(torch.cos, X), "only a scalar has a gradient. Reduce it"),
    ],
)
def test_arguments_that_make_no_sense(call: Any, line: str) -> None:
    with pytest.raises((TypeError, ValueError), match=line):
        call()


def test_options_are_given_by_a_partial() -> None:
    coarse = partial(func.anderson, tol=0.1)
    found = func.fixed_point(torch.cos, torch.tensor(1.0), solver=coarse)
    assert 1e-4 < abs(float(found) - 0.739085) < 0.1


@pytest.mark.slow
def test_on_the_default_backend(fresh_dynamo: None) -> None:
    """In C++ torch calls the operators of a graph with a loop by the wrong numbers."""
    found = parallax.compile(func.vmap(func.grad(square_root)))(A)
    torch.testing.assert_close(found, 0.5 / A.sqrt())
