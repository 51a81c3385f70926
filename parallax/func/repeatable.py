"""A call that can be made again: its arguments as tensors, and all else as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CellType, FunctionType
from typing import Any

from torch import Tensor

from parallax._compat import dynamo
from parallax.core.nodes import is_module
from parallax.func.differentiated import filled
from parallax.tree import core

__all__ = ["NowAndLater", "Parts", "Repeatable"]


class Parts:
    """A tree of anything, taken apart into its tensors and the rest.

    Attributes:
        tensors: the leaves that are tensors, then the keys that modules hold.
    """

    __slots__ = ("_keyed", "_leaves", "_places", "_spec", "tensors")

    def __init__(self, tree: Any) -> None:
        leaves, self._spec = core.opened(tree)
        self._leaves = list(leaves)
        self._places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        rngs = self._spec.rngs
        self._keyed = [k for k, rng in enumerate(rngs) if getattr(rng, "key", None) is not None]
        self.tensors = [leaves[place] for place in self._places]
        self.tensors += [rngs[k].key for k in self._keyed]

    def build(self, tensors: Sequence[Tensor]) -> Any:
        """The tree around other tensors."""
        count, spec = len(self._places), self._spec
        if self._keyed:
            rngs = list(spec.rngs)
            for place, key in zip(self._keyed, tensors[count:], strict=True):
                rngs[place] = rngs[place].with_key(key)
            spec = spec.with_rngs(rngs)
        return spec.build(filled(list(self._leaves), self._places, tensors[:count]))


class Repeatable:
    """A call of a function, as a function of the tensors in its arguments.

    A module that is called, or whose method is, is an argument, too.

    Attributes:
        tensors: those it was called with.
    """

    __slots__ = ("_function", "_parts", "tensors")

    def __init__(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        owner = function if is_module(function) else getattr(function, "__self__", None)
        if is_module(owner):
            method: Any = function
            self._function = type(owner).__call__ if owner is function else method.__func__
            args = (owner, *args)
        else:  # dynamo traces a function once
            self._function = function if dynamo.is_compiling() else NowAndLater(function)
        self._parts = Parts((tuple(args), kwargs))
        self.tensors = self._parts.tensors

    def opened(self, tensors: Sequence[Tensor]) -> tuple[Callable[..., Any], Any, Any]:
        """The function, and the positional and the keyword arguments around other tensors."""
        args, kwargs = self._parts.build(tensors)
        return self._function, args, kwargs

    def __call__(self, *tensors: Tensor) -> Any:
        """The result, with other tensors in the arguments."""
        function, args, kwargs = self.opened(tensors)
        return function(*args, **kwargs)


class NowAndLater:
    """A function that is called once, and later again with the variables from around as they are.

    A variable of a loop, say, has its last value by the time a derivative is taken.
    """

    __slots__ = ("_later", "_now")

    def __init__(self, function: Callable[..., Any]) -> None:
        self._now, self._later = function, _as_it_is(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        function, self._now = self._now, self._later
        return function(*args, **kwargs)


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the present values of the variables that it takes from around."""
    if not isinstance(function, FunctionType) or not function.__closure__:
        return function
    cells = tuple([_copied(cell) for cell in function.__closure__])
    made = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _copied(cell: CellType) -> CellType:
    try:
        return CellType(cell.cell_contents)
    except ValueError:  # not filled yet
        return cell
