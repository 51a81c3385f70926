"""Which leaves of a module are tied: one tensor, or one declaration, in several places."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parallax._compat.dynamo import is_compiling
from parallax.core.fields import Lazy

__all__ = ["find_ties"]


def find_ties(places: list[Any]) -> tuple[tuple[Any, ...], tuple[int, ...] | None]:
    """The unique leaves, and per place the index of its own: one tensor in two places is a tie.

    One declaration in two places is a tie, too. Equal numbers in the places of leaves are not:
    Python makes one object of them by chance.
    """
    traced = (
        is_compiling()
    )  # dynamo has no id of a tensor, and hashes it by identity, as Python does
    if not traced:
        present = [id(leaf) for leaf in places if isinstance(leaf, (Tensor, Lazy))]
        if len(set(present)) == len(present):
            return tuple(places), None
    index: dict[Any, int] = {}
    unique: list[Any] = []
    expand: list[int] = []
    for leaf in places:
        if isinstance(leaf, Tensor if traced else (Tensor, Lazy)):
            name = leaf if traced else id(leaf)
            if name in index:
                expand.append(index[name])
                continue
            index[name] = len(unique)
        expand.append(len(unique))
        unique.append(leaf)
    return tuple(unique), None if len(unique) == len(places) else tuple(expand)
