"""A function call, and the leaves of its arguments that are differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from parallax.effects.collection import Collecting
from parallax.func.arguments import short
from parallax.func.differentiated import Moving
from parallax.func.nesting import Nesting

__all__ = ["Argnums", "Call", "call_at", "picked"]

Argnums = int | tuple[int, ...]


class Call:
    """A call of a function, and the leaves of its arguments that move, as one list.

    Attributes:
        parts: the arguments taken apart, in the order of ``argnums``.
        values: the leaves that move, of one argument after the other.
    """

    __slots__ = ("argnums", "args", "func", "kwargs", "parts", "values", "what")

    parts: Sequence[Moving]
    values: list[Tensor]

    def __init__(
        self,
        func: Callable[..., Any],
        what: str,
        argnums: Argnums,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.func = func
        self.what = what
        self.args = args
        self.kwargs = kwargs
        if type(argnums) is int and 0 <= argnums < len(args):
            self.argnums: Argnums = argnums
            part = Moving(args[argnums], what, argnums)
            self.parts, self.values = (part,), part.values
            return
        indices = picked(what, argnums, args)
        self.argnums = indices[0] if isinstance(argnums, int) else tuple(indices)
        self.parts = [Moving(args[k], what, k) for k in indices]
        self.values = [value for part in self.parts for value in part.values]

    @property
    def indices(self) -> tuple[int, ...]:
        """Which arguments are differentiated."""
        return (self.argnums,) if isinstance(self.argnums, int) else self.argnums

    def at(self, values: Sequence[Tensor], others: Sequence[Any] | None = None) -> Any:
        """The function at these values of the leaves that move.

        Args:
            values: the leaves that move.
            others: the positional arguments, if not those of the call, where none moves.
        """
        args = list(self.args if others is None else others)
        if isinstance(self.argnums, int):
            args[self.argnums] = self.parts[0].around(values)
        else:
            for index, part, chunk in zip(
                self.argnums, self.parts, self._chunks(values), strict=True
            ):
                args[index] = part.around(chunk)
        return self.func(*args, **self.kwargs)

    def still(self) -> list[tuple[int, Tensor]]:
        """The positional arguments that are tensors and are not differentiated, with their places.

        The function may write into them.
        """
        moving = self.indices
        pairs = enumerate(self.args)
        return [(k, arg) for k, arg in pairs if isinstance(arg, Tensor) and k not in moving]

    def collects(self) -> bool:
        """Whether a module among the positional arguments is in a collection of effects."""
        return any([type(getattr(arg, "_rng", None)) is Collecting for arg in self.args])

    def nested(self, levels: int = 1) -> tuple[Call, Nesting]:
        """This call as it is made inside of ``levels`` transforms."""
        nesting = Nesting(self.func, self.args, self.kwargs, levels)
        if not nesting.pairs:
            return self, nesting
        inner = Call(nesting.func, self.what, self.argnums, nesting.args, nesting.kwargs)
        return inner, nesting

    def _chunks(self, values: Sequence[Any]) -> list[Sequence[Any]]:
        """The values of each differentiated argument."""
        out: list[Sequence[Any]] = []
        start = 0
        for part in self.parts:
            out.append(values[start : start + len(part.places)])
            start += len(part.places)
        return out

    def trees(self, values: Sequence[Any]) -> Any:
        """Trees shaped like the arguments that hold these values and holes elsewhere.

        One tree where ``argnums`` is an int, a tuple where it is one.
        """
        if isinstance(self.argnums, int):
            return self.parts[0].alone(values)
        return tuple([p.alone(c) for p, c in zip(self.parts, self._chunks(values), strict=True)])


def call_at(func: Callable[..., Any], what: str, primals: Any) -> Call:
    """A call that is differentiated with respect to all of its arguments.

    Raises:
        TypeError: if ``primals`` is no tuple.
    """
    if not isinstance(primals, tuple):
        raise TypeError(
            f"{what}: primals must be a tuple of the arguments, got {type(primals).__name__}. "
            f"For one argument write (argument,)"
        )
    return Call(func, what, tuple(range(len(primals))), primals, {})


def picked(what: str, argnums: Argnums, args: tuple[Any, ...]) -> list[int]:
    """The indices that ``argnums`` stands for.

    Raises:
        TypeError: if it is neither an int nor a tuple of ints.
        ValueError: if it is empty, names an argument twice or one that was not given.
    """
    chosen: Any = (argnums,) if isinstance(argnums, int) else argnums
    if not isinstance(chosen, tuple) or not all(
        [isinstance(k, int) and not isinstance(k, bool) for k in chosen]
    ):
        raise TypeError(
            f"{what}: argnums must be an int or a tuple of ints, got {short(argnums)}. "
            f"Write argnums=0 for the first argument, argnums=(0, 1) for the first two"
        )
    if not chosen and not args:
        raise TypeError(f"{what}: no argument was given. Give those of the function: (f, x, ...)")
    if not chosen:
        raise ValueError(f"{what}: argnums is empty; name at least one positional argument")
    for k in chosen:
        if not -len(args) <= k < len(args):
            raise ValueError(
                f"{what}: argnums={argnums} names argument {k}, and {len(args)} positional "
                f"arguments were given. Keyword arguments are not differentiated: pass by position"
            )
    indices = [k % len(args) for k in chosen]
    if len(set(indices)) < len(indices):
        raise ValueError(f"{what}: argnums={argnums} names one argument twice")
    return indices
