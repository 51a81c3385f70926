"""Jacobians row by row or column by column, and derivatives along a direction.

Of many operators (``solve``, ``layer_norm``, ``batch_norm``, ``householder_product``) torch's
derivative in forward mode has wrong derivatives itself: what its formula keeps of the operator
counts as constant. So forward mode is taken where nobody differentiates its result. Elsewhere the
same is computed by jets, or by reverse mode twice, whose derivatives are right; in forward mode it
would take more time there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax import random
from parallax._compat import autograd, dynamo, functorch, in_trace, modes
from parallax.func.as_forward import CutError, as_forward
from parallax.func.call import Call
from parallax.func.expanding import Make, basis, by_jets_or, count_of, run, whole
from parallax.func.jet_rules import RULES
from parallax.func.jets import Expansion
from parallax.func.results import Result, Taking
from parallax.func.transforms import applied, through

__all__ = ["along", "forward_or_twice", "jacobian", "jacobian_rows"]

Along = tuple[Sequence[Tensor], Sequence[Tensor], Any]
T = TypeVar("T")


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

    def make(levels: int) -> Any:
        return through(call, taking, levels)

    def by_columns() -> Any:
        flat, after = make(2)
        transform = torch.func.jacfwd(flat, places, has_aux=True, randomness=randomness)
        rows, beside = applied(transform, *call.values)
        return rows, after(beside)

    def again() -> Any:
        return _either(
            call.values, lambda: _jet_columns(make, call.values),
            lambda: _columns_twice(make, call.values),
        )  # fmt: skip

    def by_rows() -> Any:
        flat, after = make(1)
        transform: Any = torch.func.jacrev(flat, places, has_aux=True, chunk_size=chunk_size)
        rows, beside = applied(transform, *call.values)
        return rows, after(beside)

    if not forward:
        rows, (_, aux) = by_rows()
    else:
        rows, (_, aux) = forward_or_twice(by_columns, again, call.values)
    return rows, taking.result, aux


def _jet_columns(make: Make, values: Sequence[Tensor]) -> Any:
    """The Jacobian by jets: for each result a tensor by each value; and what came beside."""
    expansion = Expansion(RULES, 1, count_of(values))
    outs, terms, beside = run(expansion, make, values, [(x,) for x in basis(values)])
    rows: list[list[Tensor]] = []
    for out, (term,) in zip(outs, terms, strict=True):
        if term is None:
            rows.append([out.new_zeros((*out.shape, *value.shape)) for value in values])
            continue
        parts = term.split([value.numel() for value in values])
        pairs = zip(parts, values, strict=True)
        rows.append([p.movedim(0, -1).reshape(*out.shape, *v.shape) for p, v in pairs])
    return rows, beside


def _columns_twice(make: Make, values: Sequence[Tensor]) -> Any:
    """The same by reverse mode twice."""
    outs, pull, beside = _pulled(make, values)
    columns: Any = applied(torch.func.jacrev(pull), [torch.zeros_like(out) for out in outs])
    rows = [
        [
            column[k].movedim(tuple(range(value.dim())), tuple(range(-value.dim(), 0)))
            for column, value in zip(columns, values, strict=True)
        ]
        for k in range(len(outs))
    ]
    return rows, beside


def forward_or_twice(
    forward: Callable[[], T], twice: Callable[[], T], values: Sequence[Tensor]
) -> T:  # fmt: skip
    """A derivative in forward mode; another way where that is not right, or not there.

    Of many operators torch has the derivative in forward mode, but not that of their backward:
    ``huber_loss``, ``soft_margin_loss``, ``grid_sample``, and ``mse_loss`` by a fault.

    Args:
        forward: computes it in forward mode: a tree of tensors.
        twice: the same, so that its derivatives are right: by reverse mode twice, say.
        values: all that it is a function of, as far as it is known.
    """
    if dynamo.is_compiling():  # dynamo meets refusals later, in a graph
        # Nor can it take a second forward derivative of a product with a constant.
        return twice() if functorch.derivatives_running()[1] else forward()
    if _differentiated_again(values):
        return _or(twice, forward, _is_no_second)
    found = _or(forward, twice, autograd.is_forward_refusal)
    if torch.is_grad_enabled() and _recorded(found):  # what the function captured requires grad
        with random.reuse():
            return _or(twice, lambda: found, _is_no_second)
    return found


def _is_no_second(error: RuntimeError) -> bool:
    return isinstance(error, CutError) or autograd.is_second_refusal(error)


def _differentiated_again(values: Sequence[Tensor]) -> bool:
    """Whether what is computed of the values is differentiated, by a transform or the tape."""
    return (
        functorch.differentiating()
        or modes.forward_level_active()
        or (torch.is_grad_enabled() and _recorded(values))
    )


def _recorded(tree: Any) -> bool:
    """Whether the tape records what is computed of some tensor in a tree of sequences."""
    if isinstance(tree, Tensor):
        return functorch.innermost(tree).requires_grad
    return isinstance(tree, (tuple, list)) and any([_recorded(part) for part in tree])


def _or(one: Callable[[], T], other: Callable[[], T], refused: Callable[[Any], bool]) -> T:
    """The first, or the other where torch refused that."""
    try:
        return one()
    except RuntimeError as error:
        if not refused(error):
            raise
        try:
            with random.reuse():
                return other()
        except RuntimeError as another:
            raise error from another


def along(
    make: Make, values: Sequence[Tensor], tangents: Sequence[Tensor],
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
        found: Any = torch.func.jvp(flat, tuple(at), tuple(tangents), strict=strict, has_aux=True)
        return found[0], found[1], after(found[2])

    def again() -> Along:
        return _either(
            values, lambda: _jet_along(make, values, tangents),
            lambda: _twice(make, values, tangents),
        )  # fmt: skip

    if not strict:
        return forward_or_twice(forward, again, [*values, *tangents])
    found = forward()  # raises if the result does not depend on the values
    if dynamo.is_compiling() or not _differentiated_again([*values, *tangents]):
        return found
    with random.reuse():
        return _or(again, lambda: found, _is_no_second)


def _own(values: Sequence[Tensor]) -> Sequence[Tensor]:
    """The values, none of which is a view: torch's stand-ins take no tangent that is none alike."""
    in_trace.at_trace()(in_trace.reply_views)
    views = in_trace.replied()
    return [value.clone() if k in views else value for k, value in enumerate(values)]


def _either(values: Sequence[Tensor], by_jets: Callable[[], T], twice: Callable[[], T]) -> T:
    """By jets where they can be had, and by reverse mode twice."""
    if dynamo.is_compiling() or any([value.is_complex() for value in values]):
        return twice()
    return by_jets_or(by_jets, twice)


def _jet_along(make: Make, values: Sequence[Tensor], tangents: Sequence[Tensor]) -> Along:
    outs, terms, beside = run(Expansion(RULES, 1), make, values, [(x,) for x in tangents])
    return outs, [whole(x, term) for x, (term,) in zip(outs, terms, strict=True)], beside


def _twice(make: Make, values: Sequence[Tensor], tangents: Sequence[Tensor]) -> Along:
    """The pullback is linear, and its own pullback is wanted."""
    outs, pull, beside = _pulled(make, values)
    _, push = applied(torch.func.vjp, pull, [torch.zeros_like(out) for out in outs])
    return outs, push(tuple(tangents))[0], beside


def _pulled(make: Make, values: Sequence[Tensor]) -> tuple[Sequence[Tensor], Any, Any]:
    """What a function returns, its pullback, and what came beside."""
    flat, after = make(1)
    with nullcontext() if dynamo.is_compiling() else as_forward():
        outs, pull, beside = applied(torch.func.vjp, flat, *values, has_aux=True)
    return outs, pull, after(beside)
