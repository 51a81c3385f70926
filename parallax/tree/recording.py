"""``update``: a map that records a graph only for the sake of one that exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from parallax._compat import dynamo, functorch
from parallax.core.graph import RUNNING, carries
from parallax.tree.core import leaves, map  # noqa: A004  # named as in every tree library

__all__ = ["update"]

T = TypeVar("T")


def update(fn: Callable[..., Any], tree: T, *rest: Any) -> T:
    """As ``map``, recording a graph only when a later tree carries one.

    Within a derivative (``func.grad`` and its like) it is ``map``: all of it is differentiated.
    Outside, the graph by which ``func.grad`` leads back to leaves that ``reset`` prepared does not
    count, so a loop of ``func.grad`` and ``update`` never grows one.

    Args:
        fn: takes a leaf of ``tree`` and one of each further tree to a new leaf.
        tree: a module, or any pytree that holds modules and tensors.
        *rest: trees of the same skeleton.

    Returns:
        The tree of results.

    Raises:
        ValueError: if a later tree has another skeleton.
    """
    if functorch.transform_active() or RUNNING.depth:
        return map(fn, tree, *rest)
    graphs = [leaf for other in rest for leaf in leaves(other) if _requires_grad(leaf)]
    if graphs and (dynamo.is_compiling() or carries(graphs)):
        return map(fn, tree, *rest)
    if graphs or any(_requires_grad(leaf) for leaf in leaves(tree)):
        # Without their graphs rather than under no_grad: what fn holds itself, a learned rate,
        # say, is differentiated as anywhere.
        return map(lambda *row: fn(*[_plain(leaf) for leaf in row]), tree, *rest)
    return map(fn, tree, *rest)


def _requires_grad(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _plain(leaf: Any) -> Any:
    return leaf.detach() if _requires_grad(leaf) else leaf
