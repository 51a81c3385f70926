"""``jet``: derivatives of higher order along a curve, by Taylor mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from parallax.func.arguments import called, short
from parallax.func.call import Call, call_at
from parallax.func.jets import Term
from parallax.func.signatures import R, Ts
from parallax.func.taylor import expand, refuse_complex

__all__ = ["jet"]


@overload
def jet(
    func: Callable[[*Ts], R], primals: tuple[*Ts], series: Sequence[Sequence[Any]]
) -> tuple[R, tuple[R, ...]]: ...
@overload
def jet(
    func: Callable[..., Any], primals: tuple[Any, ...], series: Sequence[Sequence[Any]]
) -> tuple[Any, tuple[Any, ...]]: ...
def jet(
    func: Callable[..., Any], primals: tuple[Any, ...], series: Sequence[Sequence[Any]]
) -> tuple[Any, tuple[Any, ...]]:
    """The value of ``func`` and its higher derivatives along a curve, by Taylor mode.

    As ``jax.experimental.jet.jet``: the primals move with one variable t, their derivatives by t at
    0 are the series, and the derivatives of the result by t are returned. One pass gives all
    orders, at a cost that grows with the square of the order, where derivatives of derivatives
    double it each time (A. Griewank, A. Walther, "Evaluating derivatives", 2008, chapter 13). If
    ``func`` calls something whose rule is not known, they are taken one after the other, in forward
    mode: the same numbers.

    Args:
        func: takes the primals to a tensor, a module, or any pytree of them.
        primals: a tuple of where to evaluate it; modules, tensors, or pytrees that hold them.
        series: for each of the primals its derivatives of orders 1, 2, ..., K: trees of its
            structure, in which a hole means zero, or ``None`` for all zeros. For a straight line
            along ``v`` they are ``(v, None, ..., None)``.

    Returns:
        ``(result, derivatives)``: the derivatives of orders 1, 2, ..., K, each a tree of the
        result's structure. They are not divided by factorials.

    Raises:
        TypeError: if the primals or series are no tuples, the primals are complex, or the function
            returns something that cannot be differentiated.
        ValueError: if the series do not fit the primals; the message names the path.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> x, one = torch.tensor(2.0), torch.tensor(1.0)
        >>> func.jet(lambda x: x**3, (x,), ((one, None, None),))
        (tensor(8.), (tensor(12.), tensor(12.), tensor(6.)))
    """
    what = called("jet", func)
    call = call_at(func, what, primals)
    refuse_complex(call)
    order, rows = _series_of(call, series)
    found, result, others = expand("curve", call, rows, order)
    count = len(result.values)
    value, *derivatives = [
        found[k : k + count] for k in range(0, count * (order + 1), count)
    ]  # fmt: skip
    return result.rebuilt(value, others), tuple([result.alone(row) for row in derivatives])


def _series_of(call: Call, series: Any) -> tuple[int, list[list[Term]]]:
    """The order; and of each leaf that moves its derivatives."""
    what = call.what
    example = "Write ((v, None),) for one primal that moves along v, to order 2"
    if not isinstance(series, (tuple, list)) or len(series) != len(call.parts):
        got = len(series) if isinstance(series, (tuple, list)) else short(series)
        raise TypeError(
            f"{what}: series must be a tuple with the derivatives of each of the "
            f"{len(call.parts)} primals, got {got}. {example}"
        )
    for place, terms in enumerate(series):
        if not isinstance(terms, (tuple, list)):
            raise TypeError(
                f"{what}: series[{place}] must be a tuple of derivatives of orders 1, 2, ..., got "
                f"{short(terms)}. {example}"
            )
    orders = sorted({len(terms) for terms in series})
    if len(orders) != 1 or orders[0] == 0:
        raise ValueError(
            f"{what}: every primal needs equally many derivatives, one at least, got "
            f"{[len(terms) for terms in series]}. Fill up with None, which means zero"
        )
    rows: list[list[Term]] = []
    for part, terms in zip(call.parts, series, strict=True):
        columns: list[list[Any]] = [
            [None] * len(part.places) if term is None else part.beside(term, what, "series")
            for term in terms
        ]
        rows += [list(row) for row in zip(*columns, strict=True)]
    return orders[0], rows
