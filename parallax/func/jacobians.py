"""Jacobians row by row or column by column, and derivatives along a direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax import random
from parallax._compat import autograd, dynamo, functorch, in_trace, shards
from parallax.func.call import Call
from parallax.func.forward_again import differentiable_again
from parallax.func.results import Result, Taking
from parallax.func.transforms import applied, through

__all__ = ["along", "forward_or_not", "jacobian", "jacobian_rows"]

Flat = Callable[..., tuple[Any, list[Tensor]]]
Along = tuple[Sequence[Tensor], Sequence[Tensor], Any]
T = TypeVar("T")
Made = tuple[Flat, Callable[[Sequence[Tensor]], Any]]


def jacobian(
    call: Call, has_aux: bool, *, forward: bool = False, chunk_size: int | None = None,
    randomness: str = "error",
) -> Any:  # fmt: skip
    """The Jacobian of a call as trees in a tree; with ``aux`` a pair."""
    rows, result, aux = jacobian_rows(
        call, has_aux, forward=forward, chunk_size=chunk_size, randomness=randomness
    )
    found = result.alone([call.trees(row) for row in rows])
    return (found, aux) if has_aux else found


def jacobian_rows(
    call: Call, has_aux: bool, *, forward: bool = False, chunk_size: int | None = None,
    randomness: str = "error",
) -> tuple[Sequence[Sequence[Tensor]], Result, Any]:  # fmt: skip
    """For each tensor of the result its derivatives by each leaf, the result, and ``aux``.

    Args:
        call: what is differentiated.
        has_aux: whether it returns a pair of a result and anything.
        forward: whether a column at a time, in forward mode, where every operator has one.
        chunk_size: how many rows at once in reverse mode.
        randomness: as for ``vmap``, in forward mode.
    """
    taking, places = Taking(call.what, has_aux), tuple(range(len(call.values)))

    def by_columns() -> Any:
        flat, after = through(call, taking, levels=2)
        flat = differentiable_again(flat)
        transform = torch.func.jacfwd(flat, places, has_aux=True, randomness=randomness)
        with functorch.one_thread():
            return applied(transform, *call.values), after

    def by_rows() -> Any:
        flat, after = through(call, taking)
        transform: Any = torch.func.jacrev(flat, places, has_aux=True, chunk_size=chunk_size)
        return applied(transform, *call.values), after

    if dynamo.is_compiling() and functorch.derivatives_running()[1]:
        forward = False  # as in ``along``
    forward = forward and not _is_spread(call.values)
    (rows, beside), after = forward_or_not(by_columns, by_rows) if forward else by_rows()
    return rows, taking.result, after(beside)[1]


def forward_or_not(forward: Callable[[], T], reverse: Callable[[], T]) -> T:
    """The first, and the second where an operator has no derivative in forward mode.

    Of many operators torch has the derivative in forward mode, but not that of their backward:
    ``huber_loss``, ``soft_margin_loss``, ``grid_sample``, and ``mse_loss`` by a fault.
    """
    autograd.load_forward_rules()
    if dynamo.is_compiling():  # dynamo meets the same refusal later, in a graph
        return forward()
    try:
        return forward()
    except RuntimeError as error:
        if not autograd.is_forward_refusal(error):
            raise
        try:
            with random.reuse():
                return reverse()
        except RuntimeError as other:
            raise error from other


def along(
    make: Callable[[int], Made], values: Sequence[Tensor], tangents: Sequence[Tensor],
    strict: bool = False,
) -> Along:  # fmt: skip
    """Values and their derivatives along a direction, and what came beside.

    Args:
        make: makes the function to differentiate for so many transforms around it, and what takes
            the tensors beside its result to what came beside; see ``transforms.through``.
        values: where to evaluate it.
        tangents: the direction.
        strict: whether a result that does not depend on the values is an error.
    """

    def forward() -> Along:
        flat, after = make(1)
        at = _own(values) if dynamo.is_compiling() else values
        flat = differentiable_again(flat)
        with functorch.one_thread():
            found: Any = torch.func.jvp(
                flat, tuple(at), tuple(tangents), strict=strict, has_aux=True
            )
        return found[0], found[1], after(found[2])

    if strict:
        autograd.load_forward_rules()
        return forward()
    if dynamo.is_compiling() and functorch.derivatives_running()[1]:
        # Dynamo cannot take a second forward derivative of a product with a constant.
        return _twice(make, values, tangents)
    if _is_spread(values):
        return _twice(make, values, tangents)
    return forward_or_not(forward, lambda: _twice(make, values, tangents))


def _is_spread(values: Sequence[Tensor]) -> bool:
    """Whether there are distributed tensors, of which torch has no derivative in forward mode."""
    return any(map(shards.is_known_distributed, values))


def _own(values: Sequence[Tensor]) -> Sequence[Tensor]:
    """The values, none of which is a view: torch's stand-ins take no tangent that is none alike."""
    in_trace.at_trace()(in_trace.reply_views)
    views = in_trace.replied()
    return [value.clone() if k in views else value for k, value in enumerate(values)]


def _twice(
    make: Callable[[int], Made], values: Sequence[Tensor], tangents: Sequence[Tensor]
) -> Along:
    """As ``along`` by reverse mode: the pullback is linear, and its own pullback is wanted."""
    flat, after = make(1)
    outs, pull, beside = applied(torch.func.vjp, flat, *values, has_aux=True)
    zeros = [torch.zeros_like(out) for out in outs]
    _, push = applied(torch.func.vjp, pull, zeros)
    return outs, push(tuple(tangents))[0], after(beside)
