"""The part of a leaf that one of several processes holds, drawn without the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from parallax._compat import elementwise

__all__ = ["PIECE", "Share", "Spreading", "drawn_in_pieces", "share_of"]

PIECE = 2**20
"""How many numbers of a leaf are drawn at once, where a process holds a part of it."""

_GROUP = 16  # torch draws normal numbers in groups of so many


class Share(NamedTuple):
    """The part of a leaf that this process holds.

    Attributes:
        starts: where it begins, along each dimension of the leaf.
        shape: its sizes.
        place: makes the leaf of that part.
        spread: makes the leaf of the whole, with the values of the first process.
    """

    starts: tuple[int, ...]
    shape: tuple[int, ...]
    place: Callable[[Tensor], Tensor]
    spread: Callable[[Tensor], Tensor]

    def of_one(self) -> Share:
        """The share of one of the tensors that are stacked along the first dimension."""
        return self._replace(starts=self.starts[1:], shape=self.shape[1:])


class Spreading(Protocol):
    """What ``initialize(plan=)`` takes: ``distributed.Plan``."""

    def shares_of(self, module: Any, *facts: str) -> tuple[list[Share | None], str | None]:
        """Of each leaf of a module the share of this process, and the device that they are on.

        Args:
            module: the module.
            *facts: what the values depend on; must be the same in all processes.

        Returns:
            The shares, with ``None`` for what is not spread, and the device; ``None`` for any.
        """
        ...

    def marked(self, module: Any) -> Any:
        """The module with the marks of this plan on its parts; its leaves are placed."""
        ...

    def raise_in_all(self, what: str, error: Exception) -> NoReturn:
        """Raises an error of this process, in all processes."""
        ...


def share_of(whole: Tensor, share: Share) -> Tensor:
    """A copy of the part, which keeps nothing of the rest alive."""
    return _within(whole, share.starts, share.shape).clone(memory_format=torch.contiguous_format)


def _within(whole: Tensor, starts: Sequence[int], shape: Sequence[int]) -> Tensor:
    for dim, (start, size) in enumerate(zip(starts, shape, strict=True)):
        whole = whole.narrow(dim, start, size)
    return whole


def drawn_in_pieces(
    fill: Callable[[Tensor], Any],
    shape: Sequence[int],
    dtype: torch.dtype,
    final: torch.dtype,
    share: Share,
) -> Tensor | None:
    """The part of what an initializer fills a leaf with, without ever holding the whole.

    Args:
        fill: fills a tensor in place, with numbers of a generator that was seeded.
        shape: of the whole leaf.
        dtype: that the numbers are drawn in.
        final: that of the leaf.
        share: which part.

    Returns:
        The part, bit by bit that of the whole; ``None`` if the initializer needs the whole.
    """
    if not all([type(start) is int for start in share.starts]):  # several processes played by one
        return None
    steps = elementwise.recorded(fill, shape, dtype)
    if steps is None:
        return None
    part = torch.empty(share.shape, dtype=final)
    start, stop = share.starts[0], share.starts[0] + share.shape[0]
    pieces = _pieces(shape)
    memory = torch.empty((pieces[-1][1] - pieces[-1][0], *shape[1:]), dtype=dtype)  # the largest
    for first, last in pieces:
        if first >= stop:
            break
        piece = memory[: last - first]
        low, high = max(first, start), min(last, stop)
        for step in steps if low < high else filter(elementwise.is_draw, steps):
            function, args, kwargs = step
            function(piece, *args, **kwargs)
        if low < high:
            rows = (low - first, *share.starts[1:]), (high - low, *share.shape[1:])
            part[low - start : high - start] = _within(piece, *rows)
    return part


def _pieces(shape: Sequence[int]) -> list[tuple[int, int]]:
    """From which row to which: about ``PIECE`` numbers in whole groups, none short at the end."""
    row = math.prod(shape[1:])
    least = _GROUP // math.gcd(_GROUP, row)
    rows = max(PIECE // row // least, 1) * least
    starts = list(range(0, max(shape[0] - rows, 0) + 1, rows))
    return list(zip(starts, [*starts[1:], shape[0]], strict=True))
