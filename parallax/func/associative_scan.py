"""``associative_scan``: all partial results of an associative function, in few steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from parallax._errors.arguments import answered
from parallax.func.arguments import check_flags, name_of
from parallax.func.framed import check_functions, fitted
from parallax.func.rows import Rows
from parallax.func.signatures import T
from parallax.func.vmap import run_flat

__all__ = ["associative_scan"]


@answered("func.associative_scan", "func.associative_scan(torch.add, xs, dim=0)")
def associative_scan(
    combine_fn: Callable[[T, T], T], xs: T, dim: int = 0, reverse: bool = False
) -> T:
    """The rows of ``xs`` combined, each with all that stand before it.

    As torch's ``associative_scan`` (and ``jax.lax.associative_scan``), with any tree for the rows.
    Neighbours are combined at once by ``vmap``, so that ``n`` rows take about ``2 log2(n)`` calls
    that depend on each other, and results differ from those of a loop by rounding. It is made of
    plain operators: all derivatives and transforms work, and compiled code grows with ``log2(n)``.

    Args:
        combine_fn: takes two rows to one of the same structure, shapes and dtypes; associative.
        xs: the rows; each tensor has the same length in dimension ``dim``.
        dim: which dimension that is.
        reverse: whether to combine each row with all that stand behind it instead.

    Returns:
        A tree like ``xs``: the first row, the first two combined, the first three, and so on.

    Raises:
        TypeError: if ``combine_fn`` is no function, or a leaf is no tensor.
        ValueError: if lengths differ, or ``combine_fn`` returns another structure, shape or dtype;
            the message names the path.

    Source: Blelloch, *Prefix sums and their applications* (1990).

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.associative_scan(torch.mul, torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([ 1.,  2.,  6., 24.])
    """
    check_functions("func.associative_scan", combine_fn=combine_fn)
    what = f"func.associative_scan({name_of(combine_fn)})"
    check_flags(what, reverse=reverse)
    rows = Rows(xs, dim, what)
    count = len(rows.stacks)

    def combined(tensors: Sequence[Tensor]) -> list[Tensor]:
        one, two = tensors[:count], tensors[count:]
        first = rows.build(one)
        found = combine_fn(first, rows.build(two))
        return fitted(found, first, one, rows.frame, what, "what combine_fn returned")

    def combine(one: Sequence[Tensor], two: Sequence[Tensor]) -> Sequence[Tensor]:
        size = one[0].shape[0]
        return run_flat(combined, [*one, *two], [0] * (2 * count), size, "error")

    stacks = [stack.flip(0) for stack in rows.stacks] if reverse else rows.stacks
    found: T = rows.build([rows.beside(stack, reverse) for stack in _scanned(combine, stacks)])
    return found


Combine = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


def _scanned(combine: Combine, stacks: Sequence[Tensor]) -> Sequence[Tensor]:
    """The stacks of combined rows: each second one by a scan of pairs, the others from these."""
    length = stacks[0].shape[0]
    if length < 2:
        return stacks
    pairs = combine([x[:-1:2] for x in stacks], [x[1::2] for x in stacks])
    odd = _scanned(combine, pairs)
    even = [x[:1] for x in stacks]
    if length > 2:
        before = [x[: (length - 1) // 2] for x in odd]
        between = combine(before, [x[2::2] for x in stacks])
        even = [torch.cat(column) for column in zip(even, between, strict=True)]
    return [_interleaved(one, two) for one, two in zip(even, odd, strict=True)]


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    """The rows of two stacks in turn; the first may have one more."""
    count = odd.shape[0]
    mixed = torch.stack([even[:count], odd], 1).flatten(0, 1)
    return torch.cat([mixed, even[count:]]) if even.shape[0] > count else mixed
