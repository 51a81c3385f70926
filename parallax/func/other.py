"""What is computed in place of a function of torch whose derivatives are wrong, or missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from parallax._compat import functorch

__all__ = ["AsItIsError", "Other"]


class AsItIsError(Exception):
    """A function of torch is to be called as it is, with these arguments."""


class Other(NamedTuple):
    """A function that is computed in place of one of torch's.

    Attributes:
        compute: takes that of torch and its arguments.
        names: of the arguments that have no default, some others behind them.
        options: the names of others.
        always: whether the first derivative is wrong, too, or missing.
        constants: places and names of arguments that torch's forward derivative takes for constant.
    """

    compute: Callable[..., Any]
    names: Sequence[str]
    options: frozenset[str] = frozenset()
    always: bool = False
    constants: Sequence[tuple[int, str]] = ()

    def __call__(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What is computed, for the arguments of torch's function."""
        behind, rest = self.names[len(args) :], dict(kwargs)
        if not kwargs.keys() <= {*behind, *self.options} or not kwargs.keys() >= {*behind}:
            raise AsItIsError  # with ``out=``, and where torch says what is wrong
        return self.compute(function, *args, *[rest.pop(name) for name in behind], **rest)

    def drops(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether torch's forward derivative would leave out a part, that by some argument."""
        given = [args[k] if k < len(args) else kwargs.get(name) for k, name in self.constants]
        return any([isinstance(x, Tensor) and functorch.is_differentiated(x) for x in given])
