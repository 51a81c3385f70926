"""Type variables of the transforms: a transformed function keeps arguments and results.

Two habits make checkers accept what people write:

- A default of ``Any``, or ``...``, lets the arguments of a lambda be called and read.
- Overloads differ in which arguments they need, where that is possible: where several of them fit
  a lambda, or a function with an argument of type ``Any``, mypy takes the result for ``Any``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVarTuple

from typing_extensions import ParamSpec, TypeVar

__all__ = ["A", "Aux", "Carried", "HasForward", "P", "R", "Row", "T", "Ts"]

A = TypeVar("A", bound=Any, default=Any)  # the first argument, and its gradient
P = ParamSpec("P", default=...)  # the arguments after it, or all
R = TypeVar("R", default=Any)  # the result
Aux = TypeVar("Aux", default=Any)  # what comes beside the result
T = TypeVar("T", default=Any)  # a tree that is carried along, and comes out again
Row = TypeVar("Row", default=Any)  # what a loop goes over
Carried = TypeVar("Carried", bound=tuple[Any, ...])  # several such trees
Ts = TypeVarTuple("Ts")  # all positional arguments
R_co = TypeVar("R_co", covariant=True)


class HasForward(Protocol[R_co]):
    """A module of Parallax or of torch, by what its ``forward`` returns."""

    @property
    def forward(self) -> Callable[..., R_co]:
        """What a call computes."""
        ...
