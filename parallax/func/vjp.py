"""``vjp`` and ``jacrev``: derivatives taken backwards from the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from parallax.func.call import Argnums, Call
from parallax.func.engines import applied, pullback, through
from parallax.func.moving import name_of
from parallax.func.results import Result, Taking

__all__ = ["Transform", "jacobian", "jacobian_rows", "jacrev", "jacrev_as", "vjp"]


def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> tuple[Any, ...]:
    """The value of ``func`` and its vector-Jacobian product, as ``torch.func.vjp``.

    Args:
        func: takes the primals to a tensor, a module, or any pytree of them.
        *primals: where to evaluate it; modules, tensors, or any pytree that holds them.
        has_aux: whether ``func`` returns a pair ``(result, aux)``.

    Returns:
        ``(result, vjp_fn)``, and ``aux`` as a third if ``has_aux``. ``vjp_fn`` takes cotangents
        in the shape of the result, where a hole means zero, to a tuple with one tree for each
        primal: holes where nothing is differentiated, ties kept and summed.

    Raises:
        TypeError: if the function returns something that cannot be differentiated.
        ValueError: if there is nothing to differentiate with respect to.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> out, pull = func.vjp(torch.sin, torch.zeros(2))
        >>> pull(torch.tensor([1.0, 2.0]))
        (tensor([1., 2.]),)
    """
    what = f"func.vjp({name_of(func)})"
    call = Call(func, what, tuple(range(len(primals))), primals, {})
    taking = Taking(what, has_aux)
    values, pull, (others, aux) = pullback(call, taking)
    result = taking.result
    out = result.rebuilt(values, others)

    def vjp_fn(cotangents: Any) -> Any:
        return call.trees(pull(result.beside(cotangents, what, "cotangents")))

    return (out, vjp_fn, aux) if has_aux else (out, vjp_fn)


def jacrev(
    func: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """A function that computes the Jacobian of ``func`` row by row, as ``torch.func.jacrev``.

    Args:
        func: returns a tensor, a module, or any pytree of them.
        argnums: which positional argument to differentiate, or a tuple of several.
        has_aux: whether ``func`` returns a pair ``(result, aux)``.
        chunk_size: how many rows to compute at once; by default all.

    Returns:
        A function of the arguments of ``func`` to the Jacobian: a tree of the result's structure,
        in the place of each tensor a tree of the argument's structure (a tuple of them if
        ``argnums`` is one), in which a leaf has the shape of the result followed by its own.
        With ``has_aux``, a pair of that and ``aux``.

    Raises:
        TypeError: when called, if ``func`` returns something that cannot be differentiated.
        ValueError: when called, if nothing in the argument can be trained.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.jacrev(lambda x: x**2)(torch.tensor([1.0, 2.0]))
        tensor([[2., 0.],
                [0., 4.]])
    """
    what = f"func.jacrev({name_of(func)})"
    return jacrev_as(what, func, argnums, has_aux=has_aux, chunk_size=chunk_size)


def jacrev_as(
    what: str,
    func: Callable[..., Any],
    argnums: Argnums,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """``jacrev`` under another name for error messages."""

    def transform(flat: Callable[..., Any], places: tuple[int, ...]) -> Callable[..., Any]:
        return torch.func.jacrev(flat, places, has_aux=True, chunk_size=chunk_size)

    @wraps(func, updated=())
    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        return jacobian(transform, Call(func, what, argnums, args, kwargs), has_aux)

    return jacobian_of


Transform = Callable[[Callable[..., Any], tuple[int, ...]], Callable[..., Any]]


def jacobian(transform: Transform, call: Call, has_aux: bool, levels: int = 1) -> Any:
    """The Jacobian of a call as trees in a tree, by a transform of torch on flat lists."""
    rows, result, aux = jacobian_rows(transform, call, has_aux, levels)
    found = result.alone([call.trees(row) for row in rows])
    return (found, aux) if has_aux else found


def jacobian_rows(
    transform: Transform, call: Call, has_aux: bool, levels: int
) -> tuple[Sequence[Sequence[Tensor]], Result, Any]:
    """For each tensor of the result its derivatives by each leaf, the result, and ``aux``."""
    taking = Taking(call.what, has_aux)
    flat, after = through(call, taking, levels)
    rows, beside = applied(transform(flat, tuple(range(len(call.values)))), *call.values)
    return rows, taking.result, after(beside)[1]
