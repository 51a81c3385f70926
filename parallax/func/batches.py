"""TensorDicts under ``vmap``: each says how many of its dimensions are its batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from parallax._compat import dynamo
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE
from parallax.tree import core
from parallax.tree.outside import is_leaf

__all__ = ["Sizes", "are_loaded", "give_sizes", "sizes_inside", "sizes_outside"]

Sizes = list[torch.Size]
"""The batch sizes of the TensorDicts of a tree, each before those that it holds."""


def are_loaded() -> bool:
    """Whether there can be a TensorDict; a trace does not look for them."""
    return not dynamo.is_compiling() and "tensordict" in sys.modules


def sizes_inside(tree: Any, dims: Sequence[int | None], what: str) -> Sizes:
    """The batch sizes of one member.

    Args:
        tree: an argument.
        dims: the mapped dimension of each leaf.
        what: the call and its option, for error messages.

    Raises:
        TypeError: if a TensorDict is a lazy stack, which has no dimension for its members.
        ValueError: if what is mapped is no dimension of a batch.
    """
    found = []
    for batch, start, stop in _collections(tree, 0):
        dim = _dim_of(batch, dims[start:stop], len(batch.batch_size) - 1, what)
        size = list(batch.batch_size)
        if dim is not None:
            del size[dim]
        found.append(torch.Size(size))
    return found


def sizes_outside(tree: Any, dims: Sequence[int | None], count: int, what: str) -> Sizes:
    """The batch sizes of the stack of so many results; as ``sizes_inside``."""
    found = []
    for batch, start, stop in _collections(tree, 0):
        dim = _dim_of(batch, dims[start:stop], len(batch.batch_size), what)
        size = list(batch.batch_size)
        if dim is not None:
            size.insert(dim, count)
        found.append(torch.Size(size))
    return found


def give_sizes(tree: Any, sizes: Sizes) -> Any:
    """The tree, which was built just now, its TensorDicts of these batch sizes."""
    if sizes:
        for (batch, _, _), size in zip(list(_collections(tree, 0)), sizes, strict=True):
            batch.batch_size = size
    return tree


def _dim_of(batch: Any, dims: Sequence[int | None], last: int, what: str) -> int | None:
    name = type(batch).__name__
    if "Lazy" in name:
        raise TypeError(
            f"{what}: a {name} keeps its members apart, so no dimension of it can be mapped. "
            f"Stack them: batch = batch.contiguous()"
        )
    kinds = set(dims)
    if not kinds or kinds == {None}:
        return None
    dim = kinds.pop()
    if kinds or dim is None or not 0 <= dim <= last:
        raise ValueError(
            f"{what}: a {name} of batch size {list(batch.batch_size)} is mapped over one dimension "
            f"of its batch, the same for all of its tensors, from 0 to {last}; got {dims}"
        )
    return dim


def _collections(tree: Any, start: int) -> Iterator[tuple[Any, int, int]]:
    """Each TensorDict of a tree, and where its leaves start and stop among those of the tree."""
    if not are_loaded() or isinstance(tree, Tensor) or is_module(tree) or is_leaf(tree):
        return
    tensordict: Any = sys.modules["tensordict"]
    if tensordict.is_tensor_collection(tree):
        yield tree, start, start + core.structure(tree).num_leaves
    children = optree.tree_flatten_one_level(tree, none_is_leaf=True, namespace=NAMESPACE)[0]
    for child in children:
        yield from _collections(child, start)
        start += core.structure(child).num_leaves
