"""Which dimension of each leaf ``vmap`` maps: ``in_dims`` and ``out_dims`` spread over trees."""

from __future__ import annotations

from typing import Any

import optree
from torch import Tensor

from parallax.core.fields import Lazy, UninitializedError
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE
from parallax.func.arguments import short
from parallax.tree import core
from parallax.tree.outside import is_leaf

__all__ = ["checked_dim", "rng_dim", "spread"]

Dims = Any
"""An int, ``None``, or a tree (or a prefix of one) of these."""


def spread(dims: Dims, tree: Any, what: str, path: str) -> list[int | None]:
    """The dimension for each leaf and hole of a tree, in the order of ``tree.flatten``.

    Args:
        dims: one int or ``None`` for the whole tree, or a pytree of the same outer structure with
            such entries; for a module, a module of its skeleton.
        tree: what is mapped.
        what: the call and its option, for error messages.
        path: where ``tree`` stands.

    Returns:
        One entry per leaf.

    Raises:
        ValueError: if ``dims`` does not fit the tree; the message names the path.
    """
    if dims is None or (isinstance(dims, int) and not isinstance(dims, bool)):
        count = 1 if isinstance(tree, Tensor) else core.structure(tree).num_leaves
        return [dims] * count
    if is_module(tree):
        if not is_module(dims):
            raise ValueError(_misfit(what, path, tree, dims))
        try:
            row: list[int | None] = list(core.columns(tree, (dims,))[2][0])
        except ValueError as error:
            raise ValueError(f"{what}, {path}: {error}") from None
        return row
    if is_module(dims) or is_leaf(tree) or is_leaf(dims) or type(dims) is not type(tree):
        raise ValueError(_misfit(what, path, tree, dims))
    ours, theirs = _one_level(tree), _one_level(dims)
    if ours[2] != theirs[2]:
        raise ValueError(
            f"{what}: {path} has the entries {list(ours[2])} and is given dimensions for "
            f"{list(theirs[2])}. Give one for each, or one int or None for all"
        )
    return [
        dim
        for entry, below, wanted in zip(ours[2], ours[0], theirs[0], strict=True)
        for dim in spread(wanted, below, what, f"{path}[{entry!r}]")
    ]


def _one_level(tree: Any) -> Any:
    return optree.tree_flatten_one_level(tree, none_is_leaf=True, namespace=NAMESPACE)


def _misfit(what: str, path: str, tree: Any, dims: Any) -> str:
    hint = f"for a {type(tree).__name__} write an int, None, or one of its structure"
    return f"{what}: {path} is a {type(tree).__name__} and is given {short(dims)}; {hint}"


def checked_dim(leaf: Any, dim: Any, what: str, path: str) -> int | None:
    """The dimension of one leaf, not negative; ``None`` for a hole.

    Raises:
        TypeError: if it is no int, or the leaf is no tensor.
        UninitializedError: if the leaf has no value yet.
        ValueError: if the leaf has no such dimension.
    """
    if dim is None or leaf is None:
        return None
    if isinstance(leaf, Lazy):
        raise UninitializedError(
            f"{what}: {path} is not initialized, so there is nothing to map. "
            f"Initialize first: module = module.initialize(rng)"
        )
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"{what}: {path} is given {dim!r}; a dimension is an int or None")
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"{what}: {path} is a {type(leaf).__name__}, and only tensors are mapped. "
            f"Give None as its dimension"
        )
    if not -leaf.dim() <= dim < leaf.dim():
        raise ValueError(
            f"{what}: {path} has shape {tuple(leaf.shape)} and no dimension {dim}. "
            f"Give None if it is the same for every member, or a dimension that it has"
        )
    return dim % leaf.dim()


def rng_dim(rng: Any, dims: Dims) -> int | None:
    """Which dimension of a module's random state is mapped: that of a stack of keys, if any.

    A tree that holds one key shares it: each member draws the same numbers.
    """
    key = None if rng is None else rng.key
    if key is None or key.dim() == 0 or dims is None:
        return None
    return dims % key.dim() if isinstance(dims, int) else 0
