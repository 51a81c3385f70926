"""Which leaves of a module are tied: one tensor, or one declaration, in several places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from parallax._compat.dynamo import is_compiling
from parallax.core.fields import Lazy

__all__ = ["find_ties"]


def find_ties(leaves: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[int, ...] | None]:
    """The unique leaves among those of all places, and for each place the index of its own.

    One tensor, or one declaration, in two places is a tie; without any the indices are ``None``.
    Equal numbers in the places of leaves are no tie: Python makes one object of them by chance.
    """
    if is_compiling():  # dynamo has no id of a tensor, and hashes it by identity, as Python does
        names = [leaf if isinstance(leaf, Tensor) else k for k, leaf in enumerate(leaves)]
    else:
        present = [id(leaf) for leaf in leaves if isinstance(leaf, (Tensor, Lazy))]
        distinct = set(present)
        if len(distinct) == len(present):  # the usual case, with less
            return tuple(leaves), None
        names = [id(leaf) if id(leaf) in distinct else ~k for k, leaf in enumerate(leaves)]
    index: dict[Any, int] = {}
    expand = [index.setdefault(name, len(index)) for name in names]
    if len(index) == len(leaves):
        return tuple(leaves), None
    return tuple(dict(zip(expand, leaves, strict=True)).values()), tuple(expand)
