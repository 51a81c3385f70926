"""Linear systems that are known by their products: solvers for implicit derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax.func.arguments import short
from parallax.func.while_loop import while_loop

__all__ = ["LinearSolve", "solver_of"]

Product = Callable[[Tensor], Tensor]
LinearSolve = Callable[[Product, Tensor], Tensor]
"""Takes the product with a matrix and a right-hand side, vectors, to the solution."""


def dense(product: Product, right: Tensor) -> Tensor:
    """Makes the matrix of its products with the unit vectors, and solves by it."""
    unit = torch.eye(right.numel(), dtype=right.dtype, device=right.device)
    columns: Tensor = torch.func.vmap(product)(unit)
    solution: Tensor = torch.linalg.solve(columns.T, right)
    return solution


def cg(product: Product, right: Tensor) -> Tensor:
    """Conjugate gradients, for symmetric, positive definite matrices."""
    tolerance: Tensor = torch.finfo(right.dtype).eps * right.norm()

    def goes_on(k: Tensor, x: Tensor, rest: Tensor, way: Tensor) -> Tensor:
        return torch.logical_and(rest.norm() > tolerance, k < 4 * right.numel())

    def step(k: Tensor, x: Tensor, rest: Tensor, way: Tensor) -> tuple[Tensor, ...]:
        moved = product(way)
        size = rest @ rest / (way @ moved)
        left = rest - size * moved
        return k + 1, x + size * way, left, left + (left @ left / (rest @ rest)) * way

    start = (torch.tensor(0), torch.zeros_like(right), right, right)
    return while_loop(goes_on, step, start)[1]


_SOLVERS: dict[str, LinearSolve] = {"cg": cg, "dense": dense}


def solver_of(linear_solve: Any, what: str) -> LinearSolve:
    """The function that a word stands for, or the function itself.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is another word.
    """
    if isinstance(linear_solve, str):
        if linear_solve not in _SOLVERS:
            raise ValueError(
                f"{what}: linear_solve must be 'dense' or 'cg', got {linear_solve!r}. Give one of "
                f"them, or a function of a product and a right-hand side, which are vectors"
            )
        return _SOLVERS[linear_solve]
    if not callable(linear_solve):
        raise TypeError(
            f"{what}: linear_solve must be 'dense', 'cg' or a function, got {short(linear_solve)}. "
            f"Write linear_solve='dense'"
        )
    return linear_solve  # type: ignore[no-any-return]  # of this kind, as is documented


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors as one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def unflattened(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of which a vector is made."""
    parts = vector.split([tensor.numel() for tensor in like])
    pairs = zip(parts, like, strict=True)
    return [part.reshape(tensor.shape).to(tensor.dtype) for part, tensor in pairs]
