"""``update``: a map that records a graph only where a graph exists already."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from parallax._compat import dynamo, functorch
from parallax._errors.arguments import check_function
from parallax.tree.core import leaves, map  # noqa: A004  # named as in every tree library

__all__ = ["RUNNING", "computed", "update"]

T = TypeVar("T")

_COUNT = "parallax_updates"
_MANY = 16


class _Running(threading.local):
    """The number of derivatives being taken on the tape in this thread; entered for each."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


RUNNING = _Running()


def update(fn: Callable[..., Any], tree: T, *rest: Any) -> T:
    """As ``map``, recording a graph only when a later tree carries one.

    Within a derivative (``func.grad`` and its like) it is ``map``: all of it is differentiated.
    Outside, it records if a later tree requires grad, so that an outer ``backward()`` is exact;
    ``func.grad`` of a tree that ``reset`` prepared gives such a tree. The leaves that ``reset``
    made do not count in ``tree`` itself, but what was computed of them does: a loop of
    ``backward()`` and ``update`` never grows a graph.

    Args:
        fn: takes a leaf of ``tree`` and one of each further tree to a new leaf.
        tree: a module, or any pytree that holds modules and tensors.
        *rest: trees of the same skeleton.

    Returns:
        The tree of results.

    Raises:
        ValueError: if a later tree has another skeleton.

    Warns:
        UserWarning: once for a loop that has recorded many updates in one graph.

    Example:
        >>> import torch
        >>> from parallax import func, nn, tree
        >>> model = nn.Linear(3, 1).initialize(0)
        >>> grads = func.grad(lambda model: model(torch.ones(3)).sum())(model)
        >>> stepped = tree.update(lambda p, g: p - 0.1 * g, model, grads)
        >>> torch.allclose(model.weight - stepped.weight, torch.full((1, 3), 0.1))
        True
    """
    check_function("tree.update", fn, "tree.update(torch.neg, model)")
    if computed(tree) or any(_requires_grad(leaf) for other in rest for leaf in leaves(other)):
        made = map(fn, tree, *rest)
        if not (functorch.transform_active() or RUNNING.depth or dynamo.is_compiling()):
            _count((tree, *rest), made)
        return made
    if any(_requires_grad(leaf) for leaf in leaves(tree)):
        # Detached rather than under no_grad: what fn itself holds, such as a learned rate, is
        # differentiated as usual.
        return map(lambda *row: fn(*[_plain(leaf) for leaf in row]), tree, *rest)
    return map(fn, tree, *rest)


def computed(*trees: Any) -> bool:
    """Whether a derivative is being taken, or trees carry the graph of one to be taken later.

    Leaves that require grad and were not computed, such as those that ``reset`` makes, do not
    count.
    """
    if functorch.transform_active() or RUNNING.depth:
        return True
    return not dynamo.is_compiling() and any(_node_of(tree) is not None for tree in trees)


def _requires_grad(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _plain(leaf: Any) -> Any:
    return leaf.detach() if _requires_grad(leaf) else leaf


def _count(trees: tuple[Any, ...], made: Any) -> None:
    """Counts the updates that one graph has recorded in a row, and warns of many, once."""
    last = _node_of(made)
    if last is None:
        return
    nodes = [_node_of(tree) for tree in trees]
    count = 1 + max([0 if node is None else node.metadata.get(_COUNT, 0) for node in nodes])
    last.metadata[_COUNT] = count if count < _MANY else math.inf  # warn once
    if count == _MANY:
        warnings.warn(
            f"{_MANY} updates in a row were recorded in one graph of autograd, which keeps all of "
            f"them in memory. A training loop needs none: take gradients by func.grad of "
            f"model.train(rng), or by loss.backward() after a fresh model.reset(rng) in each step. "
            f"If you differentiate through all of these updates, ignore this warning",
            stacklevel=4,
        )


def _node_of(tree: Any) -> Any:
    """The node of the graph that made the first leaf that one has made."""
    made = (leaf.grad_fn for leaf in leaves(tree) if isinstance(leaf, Tensor))
    return next((node for node in made if node is not None), None)
