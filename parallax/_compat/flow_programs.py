"""What a loop computes, how it is mapped, and its derivatives.

A program is a function of tensors that calls other functions of tensors. The derivative of a
program is a program, and so is a mapped one. ``called`` has torch's operator in a graph that is
traced, and the plain loop elsewhere.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op

from parallax._compat import functorch, modes
from parallax._compat.operands import apart, resolved, unaliased

__all__ = ["Function", "Program", "Scan", "called", "mapped", "moved", "pulled_back", "separate",
           "spread"]  # fmt: skip

Function = Callable[..., Sequence[Tensor]]
_Kind = torch._C._functorch.TransformType


class Program(Protocol):
    """A function of tensors that calls others."""

    @property
    def saved(self) -> int:
        """How many of the results, the last ones, are there for the derivative only."""
        ...

    def run(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        """The results, by Python's own control flow."""
        ...

    def emit(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        """The results, by torch's operator."""
        ...

    def saving(self) -> Program:
        """The program that returns, behind all else, what its derivative needs."""
        ...

    def backward(
        self, operands: Sequence[Any], saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None], wanted: Sequence[int],
    ) -> Sequence[Tensor | None]:  # fmt: skip
        """The cotangents of the operands in these places; of a program that saves."""
        ...

    def mapped(
        self, operands: Sequence[Any], dims: Sequence[int | None], info: Any
    ) -> tuple[Sequence[Tensor], Sequence[int | None]]:
        """The results for all members, and where their mapped dimension is."""
        ...


def called(program: Program, operands: Sequence[Any]) -> tuple[Tensor, ...]:
    """The results of a program: of a call of its operator, where a graph is traced."""
    # A pullback is called when its level is over; what it kept is still in wrappers of the level.
    operands = [functorch.unwrapped_if_over(x) for x in operands]
    kinds = [entry.key() for entry in torch._C._functorch.get_interpreter_stack() or ()]
    if modes.tracing_mode() is None or any(k not in (_Kind.Grad, _Kind.Vmap) for k in kinds):
        return tuple(program.run(operands))
    # Within a transform also where nothing is to differentiate: it leaves the level.
    if not kinds and not (torch.is_grad_enabled() and any(map(_requires_grad, operands))):
        return tuple(program.emit(operands))
    recorded = program if kinds and kinds[-1] == _Kind.Vmap else program.saving()
    found: Any = _Call.apply(recorded, *operands)  # type: ignore[no-untyped-call]  # it is torch's
    return tuple(found)[: len(found) - recorded.saved + program.saved]


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


class _Call(torch.autograd.Function):
    """A call that a transform sees as one function, at whatever level."""

    @staticmethod
    def forward(program: Program, *operands: Any) -> tuple[Tensor, ...]:
        return called(program, operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.program = program = inputs[0]
        # Sizes may be among them, where shapes are symbolic.
        ctx.sizes = [None if isinstance(x, Tensor) else x for x in inputs[1:]]
        tensors = [x if isinstance(x, Tensor) else None for x in inputs[1:]]
        ctx.save_for_backward(*tensors, *output[len(output) - program.saved :])
        ctx.mark_non_differentiable(*[x for x in output if not _is_inexact(x)])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        count = len(ctx.sizes)
        pairs = zip(ctx.saved_tensors[:count], ctx.sizes, strict=True)
        operands = [size if x is None else x for x, size in pairs]
        wanted = [
            k for k, x in enumerate(operands) if ctx.needs_input_grad[k + 1] and _is_inexact(x)
        ]
        found = ctx.program.backward(operands, ctx.saved_tensors[count:], cotangents, wanted)
        grads: list[Any] = [None] * (count + 1)
        for place, grad in zip(wanted, found, strict=True):
            grads[place + 1] = grad
        return tuple(grads)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        program, *operands = inputs
        found, dims = program.mapped(operands, in_dims[1:], info)
        return tuple(found), tuple(dims)


def _is_inexact(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def separate(function: Function) -> Function:
    """A traced body for torch's operators."""

    def separated(*operands: Any) -> tuple[Tensor, ...]:
        # As it was traced: a derivative within the body would be zero in the forward of a call.
        with torch.enable_grad():
            return apart(function(*operands))

    return separated


def mapped(function: Function, dims: Sequence[int | None], info: Any) -> Function:
    """The function of all members; the mapped dimension comes out first."""
    return torch.func.vmap(
        lambda *operands: tuple(function(*operands)), tuple(dims), 0, info.randomness
    )


def spread(x: Tensor, dim: int | None, size: int) -> Tensor:
    """A tensor with its mapped dimension in front; the same for all where it has none."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def moved(x: Any, dim: int | None, to: int) -> Any:
    return x if dim is None else x.movedim(dim, to)


def pulled_back(
    function: Function, operands: Sequence[Any], wanted: Sequence[int], results: Sequence[int],
    cotangents: Sequence[Tensor],
) -> Sequence[Tensor]:  # fmt: skip
    """The cotangents of some operands, from those of some results."""

    def moving(*values: Tensor) -> list[Tensor]:
        given = list(operands)
        for place, value in zip(wanted, values, strict=True):
            given[place] = value
        found = function(*given)
        return [found[k] for k in results]

    pull: Any = torch.func.vjp(moving, *[operands[k] for k in wanted])[1]
    return pull(list(cotangents))  # type: ignore[no-any-return]  # a tuple of tensors


# -- scan ---------------------------------------------------------------------------------------


_MOST_STEPS = 16
_MOST_OPERATORS = 400


def _scanned(step: Function, carry: Any, stacks: Any, shared: Any) -> Sequence[Tensor]:
    rows = [resolved(stack) for stack in stacks]
    results = 0

    def two_or_more(*operands: Any) -> Sequence[Tensor]:
        # Inductor takes a single result for a list of results (torch 2.13 and 2.14).
        nonlocal results
        found = list(step(*operands))
        results = len(found)
        return found if results > 1 else [*found, found[0].new_zeros(())]

    found = scan_op(separate(two_or_more), apart(carry), rows, tuple(unaliased(shared)))
    return found[:results]  # type: ignore[no-any-return]  # torch's operator has no types


class Scan(NamedTuple):
    """A loop over rows; operands are the first carry, the stacks of rows, and what all steps share.

    Attributes:
        step: takes the carry, a row of each stack and what is shared to the next carry and to
            what is stacked.
        carried: how many tensors the carry is.
        rows: how many stacks there are.
        size: how many operators a step is, about.
        saved: how many of the stacks that come out are the carries that the steps were given.
    """

    step: Function
    carried: int
    rows: int
    size: int
    saved: int = 0

    def _parts(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        stop = self.carried + self.rows
        return (
            list(operands[: self.carried]), list(operands[self.carried : stop]),
            list(operands[stop:]),
        )  # fmt: skip

    def run(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        carry, stacks, shared = self._parts(operands)
        found = []
        for row in zip(*[stack.unbind(0) for stack in stacks], strict=True):
            results = self.step(*carry, *row, *shared)
            carry = list(results[: self.carried])
            found.append(results[self.carried :])
        return [*carry, *[torch.stack(column) for column in zip(*found, strict=True)]]

    def emit(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        carry, stacks, shared = self._parts(operands)
        length = stacks[0].shape[0]
        several = self._at_once(length)
        if several == 1:
            return _scanned(self.step, carry, stacks, shared)
        whole = length // several * several
        chunks = [x[:whole].unflatten(0, (-1, several)) for x in stacks]
        found = _scanned(lambda *rows: self.run(rows), carry, chunks, shared)
        carry = list(found[: self.carried])
        columns = [x.flatten(0, 1) for x in found[self.carried :]]
        if whole < length:
            found = _scanned(self.step, carry, [x[whole:] for x in stacks], shared)
            carry = list(found[: self.carried])
            columns = [torch.cat(c) for c in zip(columns, found[self.carried :], strict=True)]
        return [*carry, *columns]

    def _at_once(self, length: Any) -> int:
        """How many steps the body of the operator is: its passes cost as much as two operators."""
        most = min(_MOST_STEPS, _MOST_OPERATORS // self.size)
        if not isinstance(length, int) or most < 2 or length < 4 * most:
            return 1
        fitting = [k for k in range(most, most // 2, -1) if length % k == 0]
        return fitting[0] if fitting else most

    def saving(self) -> Scan:
        if self.saved:
            return self

        def step(*operands: Any) -> Sequence[Tensor]:
            return [*self.step(*operands), *operands[: self.carried]]

        return self._replace(step=step, saved=self.carried)

    def backward(
        self, operands: Sequence[Any], saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None], wanted: Sequence[int],
    ) -> Sequence[Tensor]:  # fmt: skip
        """A loop over the steps from the last to the first, each computed once more."""
        carry, stacks, shared = self._parts(operands)
        moving = [k for k, x in enumerate(carry) if _is_inexact(x)]
        given = [k for k in range(self.carried, len(cotangents)) if cotangents[k] is not None]
        stop = self.carried + self.rows
        in_rows = [k for k in wanted if self.carried <= k < stop]
        in_shared = [k for k in wanted if k >= stop]
        places = [*moving, *in_shared, *in_rows]
        n, totals = len(moving), len(in_shared)

        def back(*values: Any) -> list[Tensor]:
            values_of = iter(values)
            pulled = [next(values_of) for _ in moving]
            sums = [next(values_of) for _ in in_shared]
            held = [next(values_of) for _ in range(stop)]
            pulled += [next(values_of) for _ in given]
            found = pulled_back(self.step, [*held, *values_of], places, [*moving, *given], pulled)
            summed = [x + y for x, y in zip(sums, found[n : n + totals], strict=True)]
            return [*found[:n], *summed, *found[n + totals :]]

        ends = [cotangents[k] for k in moving]
        start = [
            torch.zeros_like(carry[k]) if end is None else end
            for k, end in zip(moving, ends, strict=True)
        ]
        start += [torch.zeros_like(operands[k]) for k in in_shared]
        columns: list[Any] = [*saved, *stacks, *[cotangents[k] for k in given]]
        loop = Scan(back, len(start), len(columns), 3 * self.size)
        found = called(loop, [*start, *[x.flip(0) for x in columns], *shared])
        grads = dict(zip([*moving, *in_shared], found, strict=False))
        grads |= dict(zip(in_rows, [x.flip(0) for x in found[len(start) :]], strict=True))
        return [grads[k] for k in wanted]

    def mapped(
        self, operands: Sequence[Any], dims: Sequence[int | None], info: Any
    ) -> tuple[Sequence[Tensor], Sequence[int]]:
        size, stop = info.batch_size, self.carried + self.rows
        pairs = list(zip(operands, dims, strict=True))
        given = [spread(x, dim, size) for x, dim in pairs[: self.carried]]
        # Rows are taken in the first dimension, so that their members are in the next.
        given += [moved(x, dim, 1) for x, dim in pairs[self.carried : stop]]
        given += [moved(x, dim, 0) for x, dim in pairs[stop:]]
        inside = [0] * self.carried + [None if dim is None else 0 for dim in dims[self.carried :]]
        found = called(self._replace(step=mapped(self.step, inside, info)), given)
        return found, [0] * self.carried + [1] * (len(found) - self.carried)
