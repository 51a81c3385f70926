"""Compiled branches, and loops of unknown length: how they are mapped, and their derivatives."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.cond import cond_op
from torch._higher_order_ops.while_loop import while_loop_op

from parallax._compat import functorch, modes
from parallax._compat.flow_programs import (
    Function,
    called,
    mapped,
    moved,
    pulled_back,
    separate,
    spread,
)  # fmt: skip
from parallax._compat.operands import apart, unaliased

__all__ = ["Cond", "While"]


def _is_recorded(value: Any) -> bool:
    """Whether autograd's tape, outside of all transforms, records what is done with a tensor."""
    recorded = isinstance(value, Tensor) and functorch.innermost(value).requires_grad
    return recorded and torch.is_grad_enabled()


def _reverse_runs() -> bool:
    return functorch.derivatives_running()[0] > 0


class Cond(NamedTuple):
    """One of two functions; operands are what decides, and what both take.

    Attributes:
        true: the first.
        false: the second.
        drawn: whether one of them draws from torch's random state.
    """

    true: Function
    false: Function
    drawn: bool = False

    saved: int = 0

    def run(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        pred, *given = operands
        if not functorch.is_mapped_within(pred):
            if modes.tracing_mode() is None:
                return self.true(*given) if pred else self.false(*given)
            # Derivatives of a graph's choice between results are those of the branch that is taken
            # in forward mode only: in reverse, an infinity of the other would become nan.
            if any(map(_is_recorded, given)) or _reverse_runs():
                raise NotImplementedError(
                    "func.cond: a compiled branch has no forward derivative of a gradient, and no "
                    "gradient of a forward derivative. Use func.grad of func.grad, such as "
                    "func.hvp; or take the forward derivative outside of compiled code"
                )
        pairs = zip(self.true(*given), self.false(*given), strict=True)
        return [torch.where(pred, one, two) for one, two in pairs]

    def emit(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        pred, *given = operands
        return cond_op(pred, separate(self.true), separate(self.false), tuple(unaliased(given)))  # type: ignore[no-any-return]  # it is torch's

    def saving(self) -> Cond:
        return self

    def backward(
        self, operands: Sequence[Any], saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None], wanted: Sequence[int],
    ) -> Sequence[Tensor]:  # fmt: skip
        """The derivative of the branch that was taken."""
        del saved
        if self.drawn:  # it would be called again, and draw other numbers
            raise RuntimeError(
                "func.cond: a branch draws from torch's own random state, and compiled code has no "
                "reverse-mode derivative of that. Draw with a key that is among the operands, such "
                "as random.normal(key, shape) or random.dropout_mask(key, shape, p)"
            )
        pred, *given = operands
        results = [k for k, cotangent in enumerate(cotangents) if cotangent is not None]
        places = [k - 1 for k in wanted]

        def back(function: Function) -> Function:
            def pulled(*values: Any) -> Sequence[Tensor]:
                held, ends = values[: len(given)], values[len(given) :]
                return pulled_back(function, held, places, results, ends)

            return pulled

        ends = [cotangents[k] for k in results]
        return called(Cond(back(self.true), back(self.false)), [pred, *given, *ends])

    def mapped(
        self, operands: Sequence[Any], dims: Sequence[int | None], info: Any
    ) -> tuple[Sequence[Tensor], Sequence[int]]:
        true, false = [mapped(f, dims[1:], info) for f in (self.true, self.false)]
        pred, *given = operands
        if dims[0] is None:
            found: Sequence[Tensor] = called(Cond(true, false, self.drawn), [pred, *given])
        else:
            select = mapped(lambda *xs: [torch.where(xs[0], xs[1], xs[2])], (dims[0], 0, 0), info)
            pairs = zip(true(*given), false(*given), strict=True)
            found = [select(pred, one, two)[0] for one, two in pairs]
        return found, [0] * len(found)


class While(NamedTuple):
    """A loop of unknown length; operands are the first carry, and what all passes share."""

    goes_on: Function
    body: Function
    carried: int

    saved: int = 0

    def run(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        carry, shared = operands[: self.carried], operands[self.carried :]
        if modes.tracing_mode() is not None:
            raise NotImplementedError(
                "func.while_loop: a compiled loop has no forward derivative, as the number of its "
                "passes is not known. Use func.fori_loop or func.scan; or take the derivative "
                "outside of compiled code"
            )
        while True:
            (again,) = self.goes_on(*carry, *shared)
            if not functorch.innermost(again).any():
                return carry
            found = self.body(*carry, *shared)
            if functorch.is_mapped_within(again):
                pairs = zip(found, carry, strict=True)
                found = [torch.where(again, new, old) for new, old in pairs]
            carry = found

    def emit(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        carry, shared = operands[: self.carried], operands[self.carried :]

        def goes_on(*given: Any) -> Tensor:
            with torch.enable_grad():  # as in ``separate``
                return self.goes_on(*given)[0].clone()

        loop: Any = while_loop_op
        return loop(goes_on, separate(self.body), apart(carry), tuple(unaliased(shared)))  # type: ignore[no-any-return]  # it is torch's

    def saving(self) -> While:
        return self

    def backward(
        self, operands: Sequence[Any], saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None], wanted: Sequence[int],
    ) -> Sequence[Tensor]:  # fmt: skip
        """None: a loop does not keep what it went through.

        ``func.while_loop`` refuses what it can see to be differentiated, which is not all.
        """
        raise NotImplementedError(
            "func.while_loop: a compiled loop has no reverse-mode derivative, as the number of its "
            "passes is not known. Use func.fori_loop or func.scan; or call it within "
            "torch.no_grad(), with what goes in detached: x.detach()"
        )

    def mapped(
        self, operands: Sequence[Any], dims: Sequence[int | None], info: Any
    ) -> tuple[Sequence[Tensor], Sequence[int]]:
        """A loop until all members are done; those that are keep their carry."""
        pairs = list(zip(operands, dims, strict=True))
        given = [spread(x, dim, info.batch_size) for x, dim in pairs[: self.carried]]
        given += [moved(x, dim, 0) for x, dim in pairs[self.carried :]]
        inside: list[int | None] = [0] * self.carried
        inside += [None if dim is None else 0 for dim in dims[self.carried :]]
        again = mapped(self.goes_on, inside, info)

        def step(*values: Any) -> list[Tensor]:
            (on,) = self.goes_on(*values)
            pairs = zip(self.body(*values), values, strict=False)
            return [torch.where(on, new, old) for new, old in pairs]

        def goes_on(*values: Any) -> list[Tensor]:
            return [again(*values)[0].any()]

        found = called(While(goes_on, mapped(step, inside, info), self.carried), given)
        return found, [0] * len(found)
