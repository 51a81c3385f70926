"""Type variables of the transforms: a transformed function keeps arguments and results.

Some habits make checkers accept what people write, and know what it returns:

- A default of ``Any``, or ``...``, lets the arguments of a lambda be called and read.
- The first argument of a lambda is ``Untyped``: what its gradient is called with tells the type, by
  ``Like`` and ``LikeAnd``. These are for checkers alone, which infer less from a ``Protocol``.
- Overloads differ in which arguments they need, where that is possible: where several of them fit
  a lambda, or a function with an argument of type ``Any``, mypy takes the result for ``Any``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVarTuple, overload

from typing_extensions import ParamSpec, TypeVar

__all__ = ["A", "Aux", "Carried", "G", "HasForward", "Like", "LikeAnd", "P", "R", "Row", "T", "Ts"]


class Untyped(Any):  # type: ignore[misc]  # it may be called, and has every attribute
    """The first argument of a lambda, before it is called."""


Given = TypeVar("Given", bound=Any)  # what it is called with
G = TypeVar("G", bound=Any, default=Untyped)  # what is differentiated, and its gradient
A = TypeVar("A", bound=Any, default=Any)  # the first argument
P = ParamSpec("P", default=...)  # the arguments after it, or all
R = TypeVar("R", default=Any)  # the result
Aux = TypeVar("Aux", default=Any)  # what comes beside the result
T = TypeVar("T", default=Any)  # a tree that is carried along, and comes out again
Row = TypeVar("Row", default=Any)  # what a loop goes over
Carried = TypeVar("Carried", bound=tuple[Any, ...])  # several such trees
Ts = TypeVarTuple("Ts")  # all positional arguments
R_co = TypeVar("R_co", covariant=True)


class Like(Generic[G, P]):
    """A function of a tree, and of more, that returns a tree like it."""

    __name__: str

    @overload
    def __call__(
        self: Like[Untyped, P], tree: Given, /, *args: P.args, **kwargs: P.kwargs
    ) -> Given: ...
    @overload
    def __call__(self, tree: G, /, *args: P.args, **kwargs: P.kwargs) -> G: ...
    def __call__(self, tree: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The tree."""


class LikeAnd(Generic[G, P, Aux]):
    """A function of a tree, and of more, that returns a tree like it and something else."""

    __name__: str

    @overload
    def __call__(
        self: LikeAnd[Untyped, P, Aux], tree: Given, /, *args: P.args, **kwargs: P.kwargs
    ) -> tuple[Given, Aux]: ...
    @overload
    def __call__(self, tree: G, /, *args: P.args, **kwargs: P.kwargs) -> tuple[G, Aux]: ...
    def __call__(self, tree: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The tree, and the rest."""


class HasForward(Protocol[R_co]):
    """A module of Parallax or of torch, by what its ``forward`` returns."""

    @property
    def forward(self) -> Callable[..., R_co]:
        """What a call computes."""
        ...
