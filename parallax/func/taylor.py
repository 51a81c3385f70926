"""Taylor expansions of a call: by jets, and by nested derivatives where a function has no rule.

Three things are made of an expansion: derivatives along a curve, sums of second derivatives, and
the trace of a Jacobian. Each is computed of a function of tensors, which ``make(levels)`` makes for
so many transforms around it, together with what takes the tensors beside its results to what came
beside; as in ``jacobians``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallax import random
from parallax._compat import autograd, dynamo, flow, functorch, modes
from parallax.func.as_forward import CutError, as_forward
from parallax.func.call import Call
from parallax.func.differentiated import path_of
from parallax.func.expanding import Flat, Make, Series, basis, by_jets_or, count_of, run, whole
from parallax.func.forward_again import differentiable_again
from parallax.func.jacobians import forward_or_not
from parallax.func.jet_rules import RULES
from parallax.func.jets import Expansion, Term
from parallax.func.results import Result, Taking
from parallax.func.transforms import applied, through
from parallax.func.underivable import EXPANDED, refuse_what_has_no_derivative

__all__ = ["expand", "refuse_complex"]

Found = tuple[Sequence[Tensor], Any]


class _Kind(NamedTuple):
    """One of the three: by jets, by nested derivatives, and what its tensors are like."""

    by_jets: Callable[[Make, Sequence[Tensor], Series, int], Found]
    by_nesting: Callable[[Make, Sequence[Tensor], Series, int], Found]
    like: Callable[[Sequence[Tensor], int], Sequence[Tensor]]


def refuse_complex(call: Call) -> None:
    """Raises a ``TypeError`` if a leaf that moves is complex."""
    for index, part in zip(call.indices, call.parts, strict=True):
        for place, value in zip(part.places, part.values, strict=True):
            if value.is_complex():
                path = path_of(part.tree, place)
                raise TypeError(
                    f"{call.what}, argument {index}{f': {path}' if path else ''} is complex, and "
                    f"only real tensors are expanded. Pass its two parts: z.real, z.imag"
                )


def expand(
    kind: str, call: Call, series: Series = (), order: int = 0,
    check: Callable[[Result], None] | None = None,
) -> tuple[Sequence[Tensor], Result, Sequence[Tensor]]:  # fmt: skip
    """What is made of the expansion of a call.

    Args:
        kind: ``"curve"``, ``"laplacian"`` or ``"trace"``.
        call: what is expanded.
        series: of each leaf that moves its derivatives along the curve.
        order: how many.
        check: looks at what the function returned before anything is made of it.

    Returns:
        The tensors; what the function returned; and of that what is not differentiated.
    """
    if dynamo.is_compiling():
        return _traced(kind, call, series, order, check)
    taking = _Checked(call.what, check)
    found, (others, _) = _either(
        kind, lambda levels: through(call, taking, levels), call.values, series, order
    )
    return found, taking.result, others


class _Checked(Taking):
    """Takes what a function returned apart, and looks at it first."""

    __slots__ = ("_check",)

    def __init__(self, what: str, check: Callable[[Result], None] | None) -> None:
        super().__init__(what, has_aux=False)
        self._check = check

    def __call__(self, returned: Any) -> tuple[list[Tensor], Any]:
        found = super().__call__(returned)
        if self._check is not None:
            self._check(self.result)
        return found


def _traced(
    kind: str, call: Call, series: Series, order: int, check: Callable[[Result], None] | None
) -> tuple[Sequence[Tensor], Result, Sequence[Tensor]]:
    """By an operator, while dynamo traces."""
    refuse_what_has_no_derivative()

    def body(*values: Tensor) -> tuple[Any, Any]:
        inner, nesting = call.nested(0)
        result = Result(inner.at(values), call.what)
        if check is not None:
            check(result)
        found = [*result.values, *result.others, *nesting.emitted()]
        said = len(result.values), (result, nesting)
        return tuple([tensor.clone() for tensor in found]), said

    terms = [term for row in series for term in row]
    found, (result, nesting) = flow.taylor_expansion(
        body, call.values, [term for term in terms if term is not None],
        engine=kind, order=order, present=tuple([term is not None for term in terms]),
    )  # fmt: skip
    count = len(found) - len(nesting.emitted())
    others = len(result.others)
    nesting.relay(found[count:])
    return found[: count - others], result, found[count - others : count]


def _run_traced(
    kind: str, flat: Flat, values: Sequence[Tensor], terms: Sequence[Tensor],
    present: Sequence[bool], order: int,
) -> Sequence[Tensor]:  # fmt: skip
    """The same when the operator runs: the tensors, and what came beside."""
    rest = iter(terms)
    column = [next(rest) if has else None for has in present]
    series = [column[k : k + order] for k in range(0, len(column), max(order, 1))]
    with EXPANDED:
        found, beside = _either(kind, lambda levels: (flat, list), values, series, order)
    return [*found, *beside]


def _either(
    kind: str, make: Make, values: Sequence[Tensor], series: Series, order: int
) -> Found:  # fmt: skip
    """By jets, and by nested derivatives where a function has no rule."""
    chosen = _KINDS[kind]
    return by_jets_or(
        lambda: chosen.by_jets(make, values, series, order),
        lambda: chosen.by_nesting(make, values, series, order),
    )


# -- by jets ------------------------------------------------------------------------------------


def _curve(make: Make, values: Sequence[Tensor], series: Series, order: int) -> Found:
    outs, columns, beside = run(Expansion(RULES, order), make, values, series)
    pairs = list(zip(outs, columns, strict=True))
    return [*outs, *[whole(x, t[k]) for k in range(order) for x, t in pairs]], beside


def _laplacian(make: Make, values: Sequence[Tensor], series: Series, order: int) -> Found:
    expansion = Expansion(RULES, 2, count_of(values), collapsed=True)
    outs, columns, beside = run(expansion, make, values, [(x, None) for x in basis(values)])
    return [whole(x, t[1]) for x, t in zip(outs, columns, strict=True)], beside


def _trace(make: Make, values: Sequence[Tensor], series: Series, order: int) -> Found:
    expansion = Expansion(RULES, 1, count_of(values))
    outs, columns, beside = run(expansion, make, values, [(x,) for x in basis(values)])
    return [_of_own(outs, [row for (row,) in columns])], beside


def _of_own(outs: Sequence[Tensor], columns: Sequence[Term]) -> Tensor:
    """The sum of the derivatives of each entry by its own; directions are in dimension 0."""
    total = torch.zeros_like(outs[0].sum())
    start = 0
    for row, out in zip(columns, outs, strict=True):
        size = out.numel()
        if row is not None:
            total = total + row.reshape(row.shape[0], -1)[start : start + size].diagonal().sum()
        start += size
    return total


# -- by nested derivatives ----------------------------------------------------------------------


def _of_one(flat: Flat, values: Sequence[Tensor]) -> Flat:
    """The function of all entries as one vector."""

    def whole(vector: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        parts = vector.split([value.numel() for value in values])
        pairs = zip(parts, values, strict=True)
        return flat(*[part.reshape(value.shape).to(value.dtype) for part, value in pairs])

    return whole


def _joined(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values])


def _nested_laplacian(make: Make, values: Sequence[Tensor], series: Series, order: int) -> Found:
    flat, after = make(2)
    inner: Any = torch.func.jacrev(_of_one(flat, values), has_aux=True)
    rows, beside = applied(torch.func.jacrev(inner, has_aux=True), _joined(values))
    return [row.diagonal(dim1=-2, dim2=-1).sum(-1) for row in rows], after(beside)


def _nested_trace(make: Make, values: Sequence[Tensor], series: Series, order: int) -> Found:
    flat, after = make(1)
    transform: Any = torch.func.jacrev(_of_one(flat, values), has_aux=True)
    rows, beside = applied(transform, _joined(values))
    columns = [row.movedim(-1, 0) for row in rows]
    return [_of_own([column[0] for column in columns], columns)], after(beside)


Push = Callable[[Any, Tensor], Any]


def _nested_curve(make: Make, values: Sequence[Tensor], series: Series, order: int) -> Found:
    def by(push: Push) -> Found:
        return _pushed(make, values, series, order, push)

    # Derivatives of forward derivatives are wrong in torch; and a graph that is traced has no room
    # for its zeros.
    if order > 1 or modes.dispatch_mode_active():
        try:
            return by(_along_twice)
        except CutError:
            return by(_along)
        except RuntimeError as error:
            if not autograd.is_real_refusal(error):
                raise
            with random.reuse():
                return by(_along)
    return forward_or_not(lambda: by(_along), lambda: by(_along_twice))


def _pushed(
    make: Make, values: Sequence[Tensor], series: Series, order: int, push: Push
) -> Found:  # fmt: skip
    """Derivatives of derivatives with respect to the one variable of the curve."""
    flat, after = make(order)

    def curve(t: Tensor) -> Any:
        points = [
            value
            + sum([_scaled(t, k, term) for k, term in enumerate(terms, 1) if term is not None])
            for value, terms in zip(values, series, strict=True)
        ]
        outs, beside = flat(*points)
        return [list(outs)], beside

    function: Any = curve
    for _ in range(order):
        function = _deeper(function, push)
    rows, beside = function(torch.zeros((), dtype=values[0].dtype, device=values[0].device))
    return [x for row in rows for x in row], after(beside)


def _scaled(t: Tensor, order: int, term: Tensor) -> Tensor:
    return (t**order / math.factorial(order)).to(term.dtype) * term


def _deeper(function: Any, push: Push) -> Any:
    """The function with one more derivative behind those it has."""

    def deeper(t: Tensor) -> Any:
        rows, slopes, beside = push(function, t)
        return [*rows, slopes[-1]], beside

    return deeper


def _along(function: Any, t: Tensor) -> Any:
    function = differentiable_again(function)
    with functorch.one_thread():
        return torch.func.jvp(function, (t,), (torch.ones_like(t),), has_aux=True)


def _along_twice(function: Any, t: Tensor) -> Any:
    """By reverse mode: the pullback is linear, and its own pullback is wanted."""
    with as_forward():
        rows, pull, beside = applied(torch.func.vjp, function, t, has_aux=True)
    zeros = [[torch.zeros_like(x) for x in row] for row in rows]
    _, push = applied(torch.func.vjp, pull, zeros)
    return rows, push((torch.ones_like(t),))[0], beside


# -- the three ----------------------------------------------------------------------------------

_KINDS = {
    "curve": _Kind(_curve, _nested_curve, lambda outs, order: list(outs) * (order + 1)),
    "laplacian": _Kind(_laplacian, _nested_laplacian, lambda outs, order: outs),
    "trace": _Kind(_trace, _nested_trace, lambda outs, order: [outs[0].sum()]),
}


def _engine(kind: str) -> flow.Engine:
    def run(*args: Any) -> Sequence[Tensor]:
        return _run_traced(kind, *args)

    return flow.Engine(run, _KINDS[kind].like)


flow.ENGINES |= {kind: _engine(kind) for kind in _KINDS}
