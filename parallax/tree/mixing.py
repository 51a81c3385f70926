"""Leaves that torch does not compute with, mixed or sparse ones: which, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from parallax._compat import shards

__all__ = ["refuse_mixed", "refuse_rows", "refuse_unregistered"]


def refuse_mixed(
    error: BaseException, what: str, paths: Sequence[str], trees: Mapping[str, Sequence[Any]]
) -> None:
    """Raises an error that names both leaves, if torch's was of a mixture; else returns.

    Args:
        error: what was raised.
        what: the function that the user called.
        paths: of the leaves.
        trees: the leaves of each tree that took part, in the order of the paths, by what it is
            called in the error.

    Raises:
        ValueError: if plain and distributed leaves met.
    """
    if not shards.is_mixing(error):
        return
    found = [
        (shards.is_distributed(leaf), name, path, leaf)
        for path, *row in zip(paths, *trees.values(), strict=True)
        for name, leaf in zip(trees, row, strict=True)
        if isinstance(leaf, Tensor)
    ]
    # Rather two leaves of one path than any two.
    of_kind = [{place[2] for place in found if place[0] is apart} for apart in (True, False)]
    met = of_kind[0] & of_kind[1]
    found = [place for place in found if not met or place[2] in met]
    spread = next((place for place in found if place[0]), None)
    plain = next((place for place in found if not place[0]), None)
    if spread is None or plain is None:
        return
    raise ValueError(
        f"{what}: {spread[2]} of {spread[1]} is distributed ({shards.shown(spread[3])}) and "
        f"{plain[2]} of {plain[1]} is a plain tensor, and torch does not compute with both. Place "
        f"all of them with plan.apply(module), or put them together with plan.gather(tree)"
    ) from error


def refuse_rows(
    error: BaseException, what: str, paths: Sequence[str], *rows: Sequence[Any]
) -> None:
    """As ``refuse_mixed``, of the leaves of a first tree, of ``tree 2`` and so on; or sparse ones.

    Raises:
        ValueError: if plain and distributed leaves met, or a leaf is sparse.
    """
    if not shards.is_mixing(error):
        for path, leaf in [pair for row in rows for pair in zip(paths, row, strict=True)]:
            if isinstance(leaf, Tensor) and leaf.layout not in (torch.strided, torch.jagged):
                raise ValueError(
                    f"{what}: {path or 'the tensor'} is {leaf.layout}, with which torch does not "
                    f"compute this. Make it dense first: tree.map(torch.Tensor.to_dense, tree)"
                ) from error
        return
    names = ["the tree"] if len(rows) == 1 else ["the first tree"]
    names += [f"tree {number}" for number in range(2, len(rows) + 1)]
    refuse_mixed(
        error, what, [path or "the root" for path in paths], dict(zip(names, rows, strict=True))
    )


def refuse_unregistered(
    error: BaseException, what: str, paths: Sequence[str], leaves: Sequence[Any]
) -> None:
    """Raises an error that names a dataclass that counts as a leaf, if there is one; else returns.

    Args:
        error: what a function of leaves raised.
        what: the function that the user called.
        paths: of the leaves.
        leaves: the leaves.

    Raises:
        TypeError: with the line to write.
    """
    for path, leaf in zip(paths, leaves, strict=True):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            name = type(leaf).__name__
            values = "".join([f"v.{field.name}, " for field in fields(leaf)])
            raise TypeError(
                f"{what}: {path or 'the tree'} is a {name}, a dataclass that is not registered, so "
                f"that it is a leaf ({error}). Write registry.register({name}, "
                f"lambda v: (({values.rstrip()}), None), lambda _, parts: {name}(*parts))"
            ) from error
