"""``scan``: a loop that carries a tree along, and stacks what each step returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from parallax._compat import dynamo, flow
from parallax._errors.arguments import answered
from parallax.func.arguments import check_flags, name_of
from parallax.func.framed import LONE, Frame, check_functions, fitted, framed
from parallax.func.results import describe
from parallax.func.rows import Rows
from parallax.func.signatures import R, Row, T
from parallax.random.marks import carry_on

__all__ = ["scan", "scan_as"]


@answered("func.scan", "func.scan(step, init, xs, reverse=False)")
def scan(
    combine_fn: Callable[[T, Row], tuple[T, R]],
    init: T,
    xs: Row,
    *,
    dim: int = 0,
    reverse: bool = False,
) -> tuple[T, R]:
    """A loop over the rows of ``xs``, which carries a tree along and stacks what each step returns.

    As torch's ``scan`` (and ``jax.lax.scan``), with modules and any tree for carry, rows and
    results. In eager code it is a plain loop. In compiled code the step is traced and compiled
    once, whatever the length: a gradient keeps the carry of each step and computes the step once
    more, as a checkpoint does. Where a module collects its effects, or the step draws from torch's
    own random state, compiled code is the loop unrolled.

    A key from outside gives its numbers once. For new ones in each step, loop over keys:
    ``xs=(data, random.split(key, n))``; a module among ``xs`` may hold a stack of keys.

    Args:
        combine_fn: takes the carry and one row of ``xs`` to a pair of the next carry, of the same
            structure, shapes and dtypes, and of anything to be stacked (``None`` for nothing).
        init: the first carry.
        xs: what is looped over; each tensor has the length of the loop in dimension ``dim``.
        dim: which dimension that is. Results are stacked in it, too, if they have so many
            dimensions, otherwise in the first.
        reverse: whether to begin with the last row; results stand beside their rows.

    Returns:
        The last carry, and the stacked results.

    Raises:
        TypeError: if ``combine_fn`` is no function of that kind, or a leaf is no tensor.
        ValueError: if the lengths differ, there is nothing to loop over, or the carry or the
            results change their structure, shapes or dtypes; the message names the path.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.scan(lambda total, x: (total + x, 2 * x), torch.tensor(0.0), torch.ones(3))
        (tensor(3.), tensor([2., 2., 2.]))
    """
    check_functions("func.scan", combine_fn=combine_fn)
    return scan_as(f"func.scan({name_of(combine_fn)})", combine_fn, init, xs, dim, reverse)


def scan_as(
    what: str,
    combine_fn: Callable[[Any, Any], Any],
    init: Any,
    xs: Any,
    dim: int = 0,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """``scan`` under another name for error messages."""
    check_flags(what, reverse=reverse)
    rows = Rows(xs, dim, what)
    loop = _Loop(combine_fn, init, rows, what)
    if dynamo.is_compiling():
        return loop.traced(reverse)
    return loop.plain(reverse)


class _Loop:
    """One call of ``scan``."""

    __slots__ = ("carry", "combine_fn", "frame", "init", "rows", "what")

    def __init__(self, combine_fn: Any, init: Any, rows: Rows, what: str) -> None:
        self.combine_fn = combine_fn
        self.init = init
        self.rows = rows
        self.what = what
        self.carry, self.frame = framed(init, what, "init")

    def step(self, carry: Any, row: Sequence[Tensor]) -> tuple[Any, Any, list[Tensor]]:
        """The next carry, what is to be stacked, and the tensors of the carry."""
        carry, y = self.pair(self.combine_fn(carry, self.rows.build(row)))
        return carry, y, self.fitted(carry)

    def pair(self, found: Any) -> Any:
        """What the function returned, which must be two things."""
        if type(found) is not tuple or len(found) != 2:
            raise TypeError(
                f"{self.what}: the function returns a pair (carry, result), got {describe(found)}. "
                f"Return two things: return carry, y; or return carry, None"
            )
        return found

    def fitted(self, carry: Any) -> list[Tensor]:
        """The tensors of a carry, which must be like the first."""
        role = "the carry that was returned"
        return fitted(carry, self.init, self.carry, self.frame, self.what, role)

    def plain(self, reverse: bool) -> tuple[Any, Any]:
        """The loop, step by step."""
        carry, results, role = self.init, [], "the result of a step"
        first: tuple[Any, list[Tensor], Frame] | None = None
        same = False  # whether the first result was the carry
        function, build = self.combine_fn, self.rows.build
        lone = self.frame is LONE  # the usual case, with less: the carry is one tensor
        shape, dtype = (self.init.shape, self.init.dtype) if lone else (None, None)
        for row in self.rows.each(reverse):
            carry, y = self.pair(function(carry, build(row)))
            known = lone and type(carry) is Tensor
            known = known and carry.shape == shape and carry.dtype is dtype
            if not known:
                self.fitted(carry)
            if first is None:
                first = (y, *framed(y, self.what, role))
                results.append(first[1])
                same = known and y is carry
            elif same and known and y is carry:
                results.append([y])
            else:
                results.append(fitted(y, *first, self.what, role))
        assert first is not None
        columns = zip(*results, strict=True)
        return carry, first[2].build([self.rows.stacked(column, reverse) for column in columns])

    def traced(self, reverse: bool) -> tuple[Any, Any]:
        """The loop as one operator, while dynamo traces."""
        count = len(self.carry)

        def body(*tensors: Tensor) -> tuple[Any, Any]:
            _, y, carry = self.step(self.frame.build(tensors[:count]), tensors[count:])
            results, frame = framed(y, self.what, "the result of a step")
            carry_on(tensors[:count], carry)
            return tuple([tensor.clone() for tensor in [*carry, *results]]), frame

        stacks = [x.flip(0) for x in self.rows.stacks] if reverse else self.rows.stacks
        found, frame = flow.scan(body, self.carry, stacks)
        results = [self.rows.beside(stack, reverse) for stack in found[count:]]
        return self.frame.build(found[:count]), frame.build(results)
