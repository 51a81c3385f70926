"""``root``, ``fixed_point`` and ``argmin``: solutions that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from parallax import tree
from parallax._compat import dynamo
from parallax._errors.arguments import answered
from parallax.func.arguments import name_of, short
from parallax.func.framed import check_functions
from parallax.func.implicit import Equation, Unknown, implicit
from parallax.func.linear_solves import LinearSolve, solver_of
from parallax.func.signatures import T
from parallax.func.solvers import anderson, damped_newton, newton

__all__ = ["argmin", "fixed_point", "root"]

Solver = Callable[[Callable[[T], Any], T], T]
"""Takes a function of a tree, and where to begin, to a tree."""


@answered("func.root", "func.root(fun, init, solver=partial(func.newton, tol=1e-6))")
def root(
    fun: Callable[..., Any],
    init: T,
    args: Sequence[Any] = (),
    *,
    solver: Solver[T] = newton,
    linear_solve: str | LinearSolve = "dense",
) -> T:
    """A tree ``x`` with ``fun(x, *args) = 0``, as a function of ``args``.

    Derivatives are those of the implicit function theorem: exact at a solution, of every order, and
    they keep nothing of how it was found. Reverse mode only; what ``fun`` captures has none, and is
    refused where it is differentiated.

    Args:
        fun: takes ``x`` and ``args`` to a tree like ``x``.
        init: where the solver begins; has no derivative.
        args: what the solution is differentiated with respect to: modules, or any trees of tensors.
        solver: takes a function of ``x`` alone, and ``init``, to ``x``. It is called without
            gradients, and may be anything; by default ``func.newton``.
        linear_solve: how linear systems with the derivative of ``fun`` are solved: ``"dense"``
            makes the matrix; ``"cg"`` needs products only, and the derivative to be symmetric and
            positive definite; or a function of such a product and a right-hand side, both of
            vectors.

    Returns:
        The solution.

    Raises:
        TypeError: if an argument is of another kind, or a leaf is no tensor; or if ``fun`` captures
            what is differentiated.
        ValueError: if ``solver`` or ``fun`` returns another structure, shape or dtype than
            ``init``; the message names the path.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> def square_root(a):
        ...     return func.root(lambda x, a: x**2 - a, torch.ones(()), (a,))
        >>> func.grad(square_root)(torch.tensor(4.0))
        tensor(0.2500)
    """
    what = _called("root", fun, solver)

    def zero(unknown: Unknown) -> Equation:
        def equation(x: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
            found = fun(unknown.around(x), *unknown.args(given))
            return unknown.beside(found, "what fun returned")

        return equation

    return _solved(fun, zero, init, args, solver, linear_solve, what)


@answered(
    "func.fixed_point", "func.fixed_point(fun, init, args, solver=partial(func.anderson, tol=1e-6))"
)
def fixed_point(
    fun: Callable[..., T],
    init: T,
    args: Sequence[Any] = (),
    *,
    solver: Solver[T] = anderson,
    linear_solve: str | LinearSolve = "dense",
) -> T:
    """A tree ``x`` with ``fun(x, *args) = x``, as a function of ``args``.

    As ``root``; ``solver`` is given the function whose fixed point is wanted.

    Args:
        fun: takes ``x`` and ``args`` to a tree like ``x``.
        init: where the solver begins; has no derivative.
        args: what the solution is differentiated with respect to.
        solver: as of ``root``; by default ``func.anderson``.
        linear_solve: as for ``root``, of the derivative of ``fun(x) - x``.

    Returns:
        The solution.

    Raises:
        TypeError: as ``root``.
        ValueError: as ``root``.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> def iterate(f, x):
        ...     for _ in range(60):
        ...         x = f(x)
        ...     return x
        >>> def solution(a):
        ...     return func.fixed_point(
        ...         lambda x, a: 0.5 * x + a, torch.zeros(()), (a,), solver=iterate
        ...     )
        >>> func.grad(solution)(torch.tensor(3.0))
        tensor(2.)
    """
    what = _called("fixed_point", fun, solver)

    def zero(unknown: Unknown) -> Equation:
        def equation(x: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
            found = fun(unknown.around(x), *unknown.args(given))
            moved = unknown.beside(found, "what fun returned")
            return [new - old for new, old in zip(moved, x, strict=True)]

        return equation

    return _solved(fun, zero, init, args, solver, linear_solve, what)


@answered(
    "func.argmin", "func.argmin(fun, init, args, solver=partial(func.damped_newton, tol=1e-6))"
)
def argmin(
    fun: Callable[..., Any],
    init: T,
    args: Sequence[Any] = (),
    *,
    solver: Solver[T] = damped_newton,
    linear_solve: str | LinearSolve = "dense",
) -> T:
    """A tree ``x`` at which ``fun(x, *args)`` is smallest, as a function of ``args``.

    As ``root`` of the gradient by ``x``; the linear systems are those of the Hessian, which is
    symmetric, so that ``linear_solve="cg"`` does where it is positive definite.

    Args:
        fun: takes ``x`` and ``args`` to a scalar.
        init: where the solver begins; has no derivative.
        args: what the solution is differentiated with respect to.
        solver: as of ``root``; by default ``func.damped_newton``.
        linear_solve: as for ``root``.

    Returns:
        The solution.

    Raises:
        TypeError: as ``root``.
        ValueError: as ``root``.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> def solution(a):
        ...     return func.argmin(lambda x, a: (x - 3 * a) ** 2, torch.zeros(()), (a,))
        >>> func.grad(solution)(torch.tensor(2.0))
        tensor(3.)
    """
    what = _called("argmin", fun, solver)

    def zero(unknown: Unknown) -> Equation:
        def equation(x: Sequence[Tensor], given: Sequence[Tensor]) -> Sequence[Tensor]:
            args = unknown.args(given)

            def value(*x: Tensor) -> Any:
                return fun(unknown.around(x), *args)

            least, pull, *_ = torch.func.vjp(value, *x)
            found: Any = pull(torch.ones_like(least))
            return found  # type: ignore[no-any-return]  # tensors

        return equation

    return _solved(fun, zero, init, args, solver, linear_solve, what)


def _called(name: str, fun: Any, solver: Any) -> str:
    check_functions(f"func.{name}", fun=fun, solver=solver)
    return f"func.{name}({name_of(fun)})"


def _solved(
    fun: Any,
    zero: Callable[[Unknown], Equation],
    init: T,
    args: Any,
    solver: Solver[T],
    linear_solve: Any,
    what: str,
) -> T:
    """The solution that the solver finds, with the derivative of its equation."""
    if not isinstance(args, (tuple, list)):
        raise TypeError(
            f"{what}: args must be a tuple, got {short(args)}. For one argument write (argument,)"
        )
    solve = solver_of(linear_solve, what)
    start = Unknown(init, args, what)
    still = start.args([x.detach() for x in start.given])
    with torch.no_grad():
        found = solver(lambda x: fun(x, *still), tree.map(Tensor.detach, init))
    start.beside(found, "what solver returned")
    if torch.is_grad_enabled():
        _refuse_captured(fun(tree.map(Tensor.detach, found), *still), start.given, what)
    unknown = Unknown(tree.map(Tensor.detach, found), args, what)
    values = implicit(zero(unknown), unknown.values, unknown.given, solve, what)
    solution: T = unknown.around(values)
    return solution


def _refuse_captured(value: Any, given: Sequence[Tensor], what: str) -> None:
    """Raises if a value of ``fun`` at constants carries a derivative, so by what ``fun`` captures.

    One more call of ``fun`` tells, beside the many of a solver; the derivative would miss a part.

    Args:
        value: what ``fun`` returned.
        given: the tensors of ``args``; of those with a tangent the derivative is refused later.
        what: what is called, for error messages.
    """
    tensors = [x for x in tree.leaves(value) if isinstance(x, Tensor)]
    moved = any(map(_moves, tensors)) and not any(map(_moves, given))
    if moved or any([x.requires_grad for x in tensors]):
        name, _, of = what.removeprefix("func.").partition("(")
        raise TypeError(
            f"{what}: {of.removesuffix(')')} captures a tensor that is differentiated, and the "
            f"solution has derivatives by args alone. Pass it, a model as well: "
            f"func.{name}(lambda x, model: ..., init, (model,)); or capture "
            f"tensor.detach()"
        )


def _moves(x: Tensor) -> bool:
    """Whether a tensor carries a tangent, which dynamo cannot ask."""
    return not dynamo.is_compiling() and forward_ad.unpack_dual(x).tangent is not None
