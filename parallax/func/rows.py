"""The rows that a loop goes through, of the tensors of a tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax.func.arguments import short
from parallax.func.differentiated import path_of
from parallax.func.framed import Frame, framed
from parallax.random.keys import rows_of

__all__ = ["Rows"]


def _check_dim(dim: Any, what: str) -> None:
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"{what}: dim must be an int, got {short(dim)}. Write dim=0")


class Rows:
    """What is looped over.

    Attributes:
        stacks: the tensors, the dimension of the loop first.
        build: gives the tree of one row.
        dim: which dimension that was.
        frame: the tree without its tensors.
        length: how many rows there are.
    """

    __slots__ = ("build", "dim", "frame", "length", "stacks")

    def __init__(self, xs: Any, dim: int, what: str) -> None:
        _check_dim(dim, what)
        tensors, frame = framed(xs, what, "xs")
        count = len(frame.places)
        # A single key that a module holds is the same in each step.
        keyed = [k for k, key in zip(frame.keyed, tensors[count:], strict=True) if key.dim()]
        keys = [key for key in tensors[count:] if key.dim()]
        if not count and not keys:
            raise ValueError(
                f"{what}: xs holds no tensor, so there is nothing to loop over. Give "
                f"torch.arange(n), or use func.fori_loop(0, n, body_fun, init_val)"
            )
        if len(keyed) < len(frame.keyed):
            frame = Frame(frame.spec, frame.places, keyed)
        self.frame = frame
        self.build = frame.build
        first = tensors[0].dim() if count else 1
        self.dim = dim + first if dim < 0 else dim
        self.stacks = []
        for place, tensor in zip(frame.places, tensors[:count], strict=True):
            if not 0 <= self.dim < tensor.dim():
                path = path_of(xs, place)
                raise ValueError(
                    f"{what}: xs{f': {path}' if path else ''} has shape {tuple(tensor.shape)} and "
                    f"no dimension {dim}. Give each step a row: x.expand(n, *x.shape) for what "
                    f"is the same in each"
                )
            self.stacks.append(tensor.movedim(self.dim, 0) if self.dim else tensor)
        self.stacks += keys
        self.length = self.stacks[0].shape[0]
        self._check_lengths(xs, what)

    def _check_lengths(self, xs: Any, what: str) -> None:
        for place, stack in enumerate(self.stacks):
            if stack.shape[0] != self.length:
                places = self.frame.places
                path = path_of(xs, places[place]) if place < len(places) else "a stack of keys"
                raise ValueError(
                    f"{what}: {path} in xs has length {stack.shape[0]} in dimension {self.dim}, "
                    f"and the first tensor {self.length}. Make all of one length: x[:n]"
                )
        if self.length == 0:
            raise ValueError(
                f"{what}: xs has length 0, and no step says what the results are. "
                f"Leave the loop out: if len(x) > 0: ..."
            )

    def each(self, reverse: bool) -> Iterator[Sequence[Tensor]]:
        """The tensors of one row after the other."""
        count = len(self.frame.places)
        columns = [stack.unbind(0) for stack in self.stacks[:count]]
        columns += [rows_of(key) for key in self.stacks[count:]]
        if reverse:
            columns = [column[::-1] for column in columns]
        return zip(*columns, strict=True)

    def stacked(self, column: Sequence[Tensor], reverse: bool) -> Tensor:
        """Results as they stand beside the rows."""
        dim = self.dim if self.dim <= column[0].dim() else 0
        return torch.stack(tuple(column[::-1] if reverse else column), dim)

    def beside(self, stack: Tensor, reverse: bool) -> Tensor:
        """As ``stacked``, of results that are stacked in their first dimension."""
        stack = stack.flip(0) if reverse else stack
        return stack.movedim(0, self.dim) if 0 < self.dim < stack.dim() else stack
