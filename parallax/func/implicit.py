"""Implicit differentiation: of the solution of an equation, whatever found it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch
from parallax.func.applied import apply, differentiable
from parallax.func.custom_rules import Rule
from parallax.func.differentiated import is_inexact
from parallax.func.framed import Frame, fitted, framed
from parallax.func.linear_solves import LinearSolve, flattened, unflattened

__all__ = ["implicit"]

Equation = Callable[..., Sequence[Tensor]]
"""Takes the tensors of a solution and those of parameters to what is zero: a tensor for each."""


def implicit(
    equation: Equation, solution: Sequence[Tensor], given: Sequence[Tensor],
    linear_solve: LinearSolve, what: str,
) -> list[Tensor]:  # fmt: skip
    """A solution as a function of parameters, by the implicit function theorem.

    Args:
        equation: what the solution makes zero.
        solution: floating tensors, without a graph.
        given: the tensors of the parameters.
        linear_solve: solves for the cotangent.
        what: what is called, for error messages.

    Returns:
        The same numbers, which can be differentiated, as often as wanted.
    """
    return _Implicit(equation, linear_solve, what).at(solution, given, _order())


def _order() -> int | None:
    """How many derivatives can be taken in a trace, which looks at all of them at once."""
    if not dynamo.is_compiling():
        return None
    return functorch.derivatives_running()[0] + int(dynamo.differentiated_outside())


class _Implicit:
    """An equation, and how its linearization is solved."""

    __slots__ = ("equation", "linear_solve", "what")

    def __init__(self, equation: Equation, linear_solve: LinearSolve, what: str) -> None:
        self.equation = equation
        self.linear_solve = linear_solve
        self.what = what

    def at(
        self, solution: Sequence[Tensor], given: Sequence[Tensor], order: int | None
    ) -> list[Tensor]:
        """The solution, of which so many derivatives can be taken."""
        if order == 0 or (order is None and not differentiable(given)):
            return list(solution)

        def forward(solution: Any, given: Any) -> Any:
            return list(solution), (solution, given)

        def backward(kept: Any, cotangent: Any) -> Any:
            solution, given = kept
            less = None if order is None else order - 1
            return None, self._pulled(solution, given, cotangent, less)

        rule = Rule(forward, backward, (tuple(solution), tuple(given)), self.what)
        return apply(rule, rule.open())  # type: ignore[no-any-return]  # a list of tensors

    def _pulled(self, solution: Any, given: Any, cotangent: Any, order: int | None) -> Any:
        """The cotangents of the parameters."""
        solution = self.at([x.detach() for x in solution], given, order)
        places = [k for k, x in enumerate(given) if is_inexact(x)]
        known = [given[k] for k in places]

        def transposed(vectors: Sequence[Tensor], *rest: Tensor) -> Sequence[Tensor]:
            """The product with the transposed derivative by the solution."""
            at, parameters = rest[: len(solution)], rest[len(solution) :]
            return _pulled_back(lambda *x: self.equation(x, parameters), at, vectors)

        def system(vectors: Sequence[Tensor], rest: Sequence[Tensor]) -> Sequence[Tensor]:
            """What the solution of the linear system makes zero."""
            right, rest = rest[: len(solution)], rest[len(solution) :]
            pairs = zip(transposed(vectors, *rest), right, strict=True)
            return [left - wanted for left, wanted in pairs]

        plain = [x.detach() for x in [*cotangent, *solution, *given]]
        right, rest = plain[: len(solution)], plain[len(solution) :]
        found = self.linear_solve(
            lambda v: flattened(transposed(unflattened(v, right), *rest)), flattened(right)
        )
        vectors = _Implicit(system, self.linear_solve, self.what).at(
            [x.detach() for x in unflattened(found, right)], [*cotangent, *solution, *given], order
        )

        def moved(*values: Tensor) -> list[Tensor]:
            parameters = list(given)
            for place, value in zip(places, values, strict=True):
                parameters[place] = value
            return list(self.equation(solution, parameters))

        found_grads = _pulled_back(moved, known, [-x for x in vectors])
        grads: list[Tensor | None] = [None] * len(given)
        for place, grad in zip(places, found_grads, strict=True):
            grads[place] = grad
        return tuple(grads)


def _pulled_back(
    function: Callable[..., Sequence[Tensor]], at: Sequence[Tensor], vectors: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The product with the transposed derivative of a function.

    As the gradient of an inner product: a pullback is called when its level is over, where torch
    cannot go through the levels that were within it.
    """

    def product(*values: Tensor) -> Tensor:
        pairs = zip(function(*values), vectors, strict=True)
        return torch.stack([torch.real((x * v.conj()).sum()) for x, v in pairs]).sum()

    found: Any = torch.func.grad(product, tuple(range(len(at))))(*at)
    return found  # type: ignore[no-any-return]  # tensors


class Unknown:
    """A tree of which the floating tensors are to be found, and the parameters of its equation.

    Attributes:
        values: the floating tensors.
        given: the tensors of the parameters.
    """

    __slots__ = ("_frame", "_frames", "_places", "_tensors", "given", "tree", "values", "what")

    def __init__(self, tree: Any, args: Sequence[Any], what: str) -> None:
        self.tree = tree
        self.what = what
        self._tensors, self._frame = framed(tree, what, "the solution")
        self._places = [k for k, x in enumerate(self._tensors) if is_inexact(x)]
        self.values = [self._tensors[k] for k in self._places]
        if not self.values:
            raise ValueError(
                f"{what}: the solution holds no floating tensor, so there is nothing to solve for. "
                f"Give floating tensors: init = torch.zeros(n)"
            )
        self.given: list[Tensor] = []
        self._frames: list[tuple[int, Frame]] = []
        for index, arg in enumerate(args):
            found, frame = framed(arg, what, f"args[{index}]")
            self.given += found
            self._frames.append((len(found), frame))

    def around(self, values: Sequence[Tensor]) -> Any:
        """The tree around others of its floating tensors."""
        tensors = list(self._tensors)
        for place, value in zip(self._places, values, strict=True):
            tensors[place] = value
        return self._frame.build(tensors)

    def args(self, given: Sequence[Tensor]) -> list[Any]:
        """The parameters around other tensors."""
        args, start = [], 0
        for count, frame in self._frames:
            args.append(frame.build(given[start : start + count]))
            start += count
        return args

    def beside(self, tree: Any, role: str) -> list[Tensor]:
        """What another tree, of the same kind, has in the places of the floating tensors."""
        found = fitted(tree, self.tree, self._tensors, self._frame, self.what, role)
        return [found[k] for k in self._places]
