"""Solvers for ``root``, ``fixed_point`` and ``argmin``, which take them where none is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parallax import tree
from parallax._compat import dynamo, functorch
from parallax._errors.arguments import answered
from parallax.func.arguments import short
from parallax.func.framed import check_functions, framed
from parallax.func.grad import scalar_and_aux
from parallax.func.signatures import T
from parallax.func.while_loop import while_loop

__all__ = ["anderson", "damped_newton", "newton"]

Step = Callable[..., tuple[Tensor, ...]]


@answered("func.anderson", "func.anderson(f, x, tol=1e-6, max_steps=1000)")
def anderson(
    f: Callable[[T], T], x: T, *, tol: float | None = None, max_steps: int = 1000, history: int = 5
) -> T:
    """A fixed point by Anderson's acceleration: each step mixes the results of the last ones.

    For functions that contract, and many that do not; it needs no derivative, and memory for twice
    ``history`` trees.

    Args:
        f: takes a tree to a tree like it.
        x: where to begin.
        tol: how far ``f(x)`` may be from ``x``, relative to ``1 + norm(x)``; by default about 1e-5
            in single and 2e-12 in double precision.
        max_steps: how often ``f`` is called at most.
        history: how many results are mixed.

    Returns:
        The fixed point. Where there was none within ``max_steps`` an error tells; in compiled code,
        and for a member of ``vmap``, the result is nan.

    Raises:
        RuntimeError: in eager code, if there was none.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.anderson(torch.cos, torch.tensor(1.0))
        tensor(0.7391)
    """
    flat, unravel, least = _opened("anderson", f, x, tol, max_steps, history)

    def rest(at: Tensor) -> Tensor:
        return _like("anderson", f(unravel(at)), at) - at

    def step(at: Tensor, points: Tensor, rests: Tensor, last: Tensor) -> tuple[Tensor, ...]:
        found = rest(at)
        size, bound = found.norm(), least * (1 + at.norm())
        points = torch.cat([points[1:], at[None]])
        rests = torch.cat([rests[1:], found[None]])
        products = (rests @ rests.T).double()
        eye = torch.eye(history, dtype=products.dtype, device=products.device)
        ridge = 10 * torch.finfo(flat.dtype).eps * products.diagonal().sum() + 1e-300
        weights = torch.linalg.solve_ex(products + ridge * eye, eye.sum(0))[0]
        mixed = (weights / weights.sum()).to(flat.dtype) @ (points + rests)
        further = torch.where(size <= last, mixed, at + found)  # a plain step after a bad one
        return size <= bound, size, further, points, rests, size

    start = rest(flat)
    rows = (flat.expand(history, -1), start.expand(history, -1))
    state = (flat + start, *[row.clone() for row in rows], start.norm())
    return unravel(_searched("anderson", step, state, max_steps))


@answered("func.newton", "func.newton(f, x, tol=1e-6, max_steps=100)")
def newton(f: Callable[[T], T], x: T, *, tol: float | None = None, max_steps: int = 100) -> T:
    """A root by Newton's method, with shorter steps where a whole one leads away.

    It makes the matrix of derivatives, so it is for up to some thousand unknowns.

    Args:
        f: takes a tree to a tree like it.
        x: where to begin.
        tol: how long the last step may be, relative to ``1 + norm(x)``; as of ``anderson``.
        max_steps: how many steps it makes at most.

    Returns:
        The root; as of ``anderson``, an error or nan where there was none.

    Raises:
        RuntimeError: in eager code, if there was none.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.newton(lambda x: x**2 - 2, torch.tensor(1.0))
        tensor(1.4142)
    """
    flat, unravel, least = _opened("newton", f, x, tol, max_steps)

    def value(at: Tensor) -> tuple[Tensor, Tensor]:
        found = _like("newton", f(unravel(at)), at)
        return found, found

    def step(at: Tensor, part: Tensor) -> tuple[Tensor, ...]:
        matrix, found = torch.func.jacrev(value, has_aux=True)(at)
        way = torch.linalg.solve_ex(matrix, found)[0]
        size = way.norm()
        is_near = size <= least * (1 + at.norm())
        further = at - part * way
        closer = value(further)[0].norm() < found.norm()
        takes = is_near | closer | (part < 1e-3)
        shorter = torch.where(takes, (2 * part).clamp(max=1.0), part / 2)
        return is_near, size, torch.where(takes, further, at), shorter

    state = (flat, torch.ones_like(flat.sum()))
    return unravel(_searched("newton", step, state, max_steps))


@answered("func.damped_newton", "func.damped_newton(f, x, tol=1e-6, max_steps=200)")
def damped_newton(
    f: Callable[[T], Any], x: T, *, tol: float | None = None, max_steps: int = 200
) -> T:
    """A minimum by Newton's method, of which each step goes down (Levenberg and Marquardt).

    It makes the Hessian, so it is for up to some thousand unknowns.

    Args:
        f: takes a tree to a scalar.
        x: where to begin.
        tol: how long the last step may be, relative to ``1 + norm(x)``; as of ``anderson``.
        max_steps: how many steps it makes at most.

    Returns:
        The minimum, which may be one of several; as of ``anderson``, an error or nan where there
        was none.

    Raises:
        RuntimeError: in eager code, if there was none.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.damped_newton(lambda x: (x - 1) ** 2 + x**4, torch.tensor(3.0))
        tensor(0.5898)
    """
    flat, unravel, least = _opened("damped_newton", f, x, tol, max_steps)
    eye = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    eps = torch.finfo(flat.dtype).eps

    def value(at: Tensor) -> Any:
        return scalar_and_aux(f(unravel(at)), "func.damped_newton(f)", False)[0]

    def slope(at: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        found, height = torch.func.grad_and_value(value)(at)
        return found, (found, height)

    def step(at: Tensor, damping: Tensor) -> tuple[Tensor, ...]:
        hessian, (gradient, height) = torch.func.jacrev(slope, has_aux=True)(at)
        scale = hessian.diagonal().abs().mean() + eps
        way = torch.linalg.solve_ex(hessian + damping * scale * eye, gradient)[0]
        size = way.norm()
        down = value(at - way) <= height + 4 * eps * height.abs()
        takes = down & (way @ gradient >= 0)
        is_near = takes & (size <= least * (1 + at.norm())) & (damping < 1e-2)
        less = torch.where(damping < 1e-6, torch.zeros_like(damping), damping / 10)
        damping = torch.where(takes, less, (10 * damping).clamp(min=1e-4))
        return is_near, size, torch.where(takes, at - way, at), damping

    return unravel(
        _searched("damped_newton", step, (flat, torch.zeros_like(flat.sum())), max_steps)
    )


def _opened(
    name: str, f: Any, x: T, tol: Any, max_steps: Any, history: Any = 1
) -> tuple[Tensor, Callable[[Tensor], T], float]:
    """Where to begin as a vector, what makes a tree of one, and the tolerance."""
    check_functions(f"func.{name}", f=f)
    framed(x, f"func.{name}", "x")  # which refuses leaves without values
    flat, unravel = tree.ravel(x)
    if not flat.is_floating_point():
        raise TypeError(
            f"func.{name}: it is for real numbers, got {flat.dtype}. Give a solver of yours: "
            f"solver=solve, where solve(f, x) returns a tree like x"
        )
    for option, value, write in (("max_steps", max_steps, 100), ("history", history, 5)):
        if type(value) is not int or value < 1:
            raise ValueError(
                f"func.{name}({option}=): expected a positive int, got {short(value)}. Write "
                f"{option}={write}"
            )
    if tol is None:
        tol = torch.finfo(flat.dtype).eps ** 0.75
    if not isinstance(tol, (int, float)) or not tol > 0:
        raise ValueError(
            f"func.{name}(tol=): expected a positive number, got {short(tol)}. Write tol=1e-5"
        )
    return flat, unravel, float(tol)


def _like(name: str, found: Any, at: Tensor) -> Tensor:
    """What a function returned, as a vector like that of its argument."""
    flat = tree.ravel(found)[0]
    if flat.shape != at.shape:
        raise ValueError(
            f"func.{name}: f takes a tree of {at.numel()} numbers and returned {flat.numel()}. "
            f"Return a tree like the argument"
        )
    return flat


def _searched(name: str, step: Step, state: tuple[Tensor, ...], max_steps: int) -> Tensor:
    """The first value of the state, after steps until one says that it is near.

    Raises:
        RuntimeError: in eager code, if none does.
    """
    first = state[0]
    near = torch.zeros_like(first.sum(), dtype=torch.bool)
    size = torch.full_like(first.sum(), torch.inf)

    def goes_on(k: Tensor, near: Tensor, *_: Tensor) -> Tensor:
        return (k < max_steps) & ~near

    def body(k: Tensor, near: Tensor, size: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return (k + 1, *step(*state))

    carried: Any = (torch.zeros((), dtype=torch.int64), near, size, *state)
    end = while_loop(goes_on, body, carried)
    near, size = end[1:3]
    found: Tensor = end[3]
    if dynamo.is_compiling() or functorch.is_wrapped(near):
        return torch.where(near, found, torch.nan)
    if not bool(near):
        raise RuntimeError(
            f"func.{name}: found no solution in {max_steps} steps, of which the last was as long "
            f"as {float(size):.3g}. Begin nearer to it; or allow more steps or a larger tolerance: "
            f"solver=functools.partial(func.{name}, max_steps={10 * max_steps}, tol=1e-3)"
        )
    return found
