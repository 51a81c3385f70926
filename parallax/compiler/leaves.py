"""Which items of a call are tensors that are checked outside of the compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Leaves"]

_PLAIN = (Tensor, torch.nn.Parameter)


class Leaves:
    """Which items are leaves, checked here, and which are others, guarded by dynamo.

    Attributes:
        own: the positions of the leaves, each tensor once; ``None`` if that is every item.
        same: pairs ``(position, earlier position)`` of items that are one tensor.
        others: the positions of all other items.
        signs: per other item that is a float zero its text, which has its sign.
    """

    def __init__(self, items: Sequence[Any]) -> None:
        first: dict[int, int] = {}
        own, same, others = [], [], []
        for position, item in enumerate(items):
            if not _is_plain(item):
                others.append(position)
            elif id(item) in first:
                same.append((position, first[id(item)]))
            else:
                first[id(item)] = position
                own.append(position)
        self.own = None if len(own) == len(items) else tuple(own)
        self.same = tuple(same)
        self.others = tuple(others)
        self.signs = tuple(_sign(items[k]) for k in others)

    def pick(self, items: Sequence[Any]) -> Sequence[Any]:
        """The leaves among ``items``."""
        return items if self.own is None else [items[k] for k in self.own]

    def fits(self, items: Sequence[Any]) -> bool:
        """Whether ``items`` repeat tensors in the same places, and hold others in the same."""
        return (
            all(items[k] is items[j] for k, j in self.same)
            and not any(_is_plain(items[k]) for k in self.others)
            and all(
                _sign(items[k]) == sign for k, sign in zip(self.others, self.signs, strict=True)
            )
        )

    def places(self) -> tuple[int, ...] | None:
        """Per item its index among the leaves, or ``-1 - index`` among the others."""
        if self.own is None:
            return None
        found = {position: index for index, position in enumerate(self.own)}
        found |= {position: -1 - index for index, position in enumerate(self.others)}
        found |= {position: found[first] for position, first in self.same}
        return tuple(found[position] for position in range(len(found)))


def _is_plain(item: Any) -> bool:
    """Whether torch's check of a tensor's metadata tells all about it that a graph depends on."""
    return type(item) in _PLAIN and item.layout is torch.strided and not item.is_nested


def _sign(item: Any) -> str | None:
    """What tells 0.0 from -0.0, which are equal, so that dynamo's guards take one for the other."""
    return repr(item) if type(item) is float and not item else None
