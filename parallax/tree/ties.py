"""``tie``: restores the ties of a model in a tree that lost them, such as a raw gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from parallax.tree import core
from parallax.tree.align import align_places

__all__ = ["tie"]

T = TypeVar("T")


def tie(model: T, other: Any) -> T:
    """Restores the ties of a model in another tree, by summing its values over tied places.

    Raw optree code sees a tied leaf in each of its places, and so gives a gradient in each;
    the gradient of the one leaf is their sum.

    Args:
        model: a module, or any pytree that holds modules and tensors.
        other: a tree of the same classes and constants, tied or not. Places that it ties itself
            count once.

    Returns:
        ``other``'s values in a tree of ``model``'s structure; a hole where all places have one.

    Raises:
        ValueError: if classes or constants differ; the message names the first path.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, tree
        >>> class Pair(Module):
        ...     a: Parameter
        ...     b: Parameter
        >>> weight = torch.ones(2)
        >>> grads = Pair(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        >>> tree.tie(Pair(weight, weight), grads).a
        tensor([4., 6.])
    """
    spec = core.structure(model)
    leaves: list[Any] = []
    for part, path, item in core.beside(spec, model, other):
        if part is None:
            leaves.append(item)
            continue
        places, theirs = align_places(part, item, path)
        leaves += _summed(core.expand_of(part), places, theirs)
    return cast(T, core.unflatten(spec, leaves))


def _summed(ours: Sequence[int], places: list[Any], theirs: list[int]) -> list[Any]:
    """Per unique leaf of ours the sum of the different leaves of theirs in its places."""
    sums: list[Any] = []
    counted: list[tuple[int, int]] = []
    for index, value, source in zip(ours, places, theirs, strict=True):
        if index == len(sums):
            sums.append(value)
        elif value is not None and (index, source) not in counted:
            sums[index] = value if sums[index] is None else sums[index] + value
        counted.append((index, source))
    return sums
