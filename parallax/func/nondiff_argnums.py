"""Which arguments a written derivative is about: ``nondiff_argnums``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from parallax.func.arguments import short

__all__ = ["Arguments", "Given"]


class Given(NamedTuple):
    """The arguments of one call.

    Attributes:
        args: all of them.
        places: which are differentiated.
        moving: those.
        still: the others.
    """

    args: tuple[Any, ...]
    places: tuple[int, ...]
    moving: tuple[Any, ...]
    still: tuple[Any, ...]

    def around(self, moving: Sequence[Any]) -> list[Any]:
        """All arguments, with others for those that are differentiated."""
        args = list(self.args)
        for place, arg in zip(self.places, moving, strict=True):
            args[place] = arg
        return args


class Arguments:
    """Takes the arguments of calls apart."""

    __slots__ = ("argnums", "what")

    def __init__(self, argnums: Any, what: str) -> None:
        chosen: Any = (argnums,) if isinstance(argnums, int) else argnums
        if not isinstance(chosen, tuple) or not all(
            [isinstance(k, int) and not isinstance(k, bool) for k in chosen]
        ):
            raise TypeError(
                f"{what}: nondiff_argnums must be an int or a tuple of ints, got {short(argnums)}. "
                f"Write nondiff_argnums=(0,) for the first argument"
            )
        self.argnums: tuple[int, ...] = chosen
        self.what = what

    def split(self, args: tuple[Any, ...]) -> Given:
        """The arguments of one call.

        Raises:
            ValueError: if there are too few.
        """
        for k in self.argnums:
            if not -len(args) <= k < len(args):
                raise ValueError(
                    f"{self.what}: nondiff_argnums names argument {k}, and {len(args)} were given. "
                    f"Pass all arguments by position"
                )
        still = [k % len(args) for k in self.argnums]
        places = tuple([k for k in range(len(args)) if k not in still])
        return Given(
            args, places, tuple([args[k] for k in places]), tuple([args[k] for k in still])
        )
