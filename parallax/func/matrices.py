"""Jacobians and Hessians as one matrix, for linear algebra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from parallax.func.arguments import called, check_chunk_size, short
from parallax.func.call import Argnums, Call
from parallax.func.grad import grad_as
from parallax.func.jacobians import jacobian_rows
from parallax.func.signatures import P

__all__ = ["hessian_matrix", "jacobian_matrix"]


_MODES: tuple[Any, ...] = ("reverse", "forward")


def jacobian_matrix(
    func: Callable[P, Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    mode: str = "reverse",
    chunk_size: int | None = None,
) -> Callable[P, Tensor]:
    """A function that computes the Jacobian of ``func`` as one matrix.

    Args:
        func: returns a tensor, a module, or any pytree of them.
        argnums: which positional argument to differentiate, or a tuple of several.
        mode: ``"reverse"`` as ``jacrev``, ``"forward"`` as ``jacfwd``.
        chunk_size: how many rows to compute at once in reverse mode; by default all.

    Returns:
        A function of the arguments of ``func`` to a matrix: a row for each entry of the result, a
        column for each entry of the leaves that are differentiated, in the order in which
        ``tree.ravel`` puts the entries of a gradient.

    Raises:
        TypeError: when called, if ``func`` returns something that cannot be differentiated.
        ValueError: when called, if nothing can be trained; at once, if ``mode`` is unknown.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> point = {"a": torch.ones(2), "b": torch.ones(2)}
        >>> func.jacobian_matrix(lambda d: d["a"] * d["b"])(point)
        tensor([[1., 0., 1., 0.],
                [0., 1., 0., 1.]])
    """
    what = called("jacobian_matrix", func)
    check_chunk_size(what, chunk_size)
    if str(mode) not in _MODES:
        raise ValueError(
            f"{what}: mode must be 'reverse' or 'forward', got {short(mode)}. "
            f"Write mode='forward' where the function has more results than arguments"
        )
    return _matrix_as(what, func, argnums, mode, chunk_size)


def _matrix_as(
    what: str,
    func: Callable[..., Any],
    argnums: Argnums,
    mode: str,
    chunk_size: int | None = None,
) -> Callable[..., Tensor]:
    @wraps(func, updated=())
    def matrix_of(*args: Any, **kwargs: Any) -> Tensor:
        call = Call(func, what, argnums, args, kwargs)
        rows, _, _ = jacobian_rows(call, False, forward=mode == "forward", chunk_size=chunk_size)
        return torch.cat([_side_by_side(row, call.values) for row in rows])

    return matrix_of


def _side_by_side(row: Any, values: Sequence[Tensor]) -> Tensor:
    """The derivatives of one tensor by each leaf, as one matrix."""
    blocks = zip(row, values, strict=True)
    return torch.cat([block.reshape(-1, x.numel()) for block, x in blocks], 1)


def hessian_matrix(
    func: Callable[P, Any], argnums: int | tuple[int, ...] = 0
) -> Callable[P, Tensor]:
    """A function that computes the Hessian of a scalar ``func`` as one square matrix.

    Args:
        func: returns a scalar.
        argnums: which positional argument to differentiate, or a tuple of several.

    Returns:
        A function of the arguments of ``func`` to a matrix, rows and columns in the order in which
        ``tree.ravel`` puts the entries of a gradient.

    Raises:
        TypeError: when called, if ``func`` does not return a scalar.
        ValueError: when called, if nothing in the argument can be trained.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.hessian_matrix(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
        tensor([[ 6.,  0.],
                [ 0., 12.]])
    """
    what = called("hessian_matrix", func)
    return _matrix_as(what, grad_as(what, func, argnums), argnums, "reverse")
