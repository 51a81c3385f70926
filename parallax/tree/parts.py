"""Splitting a tree into parts with holes, and combining parts."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch

from parallax.tree import core
from parallax.tree.arguments import check_tree, refuse_text
from parallax.tree.match import match
from parallax.tree.places import Survey

__all__ = ["combine", "partition"]

T = TypeVar("T")


def partition(tree: T, *conditions: Any) -> tuple[T, ...]:
    """Splits a tree into parts of its structure, with ``None`` where a leaf is in another part.

    Args:
        tree: a module, or any pytree that holds modules and tensors.
        *conditions: what ``select`` takes: a path, glob, role, class, mask or function. A leaf
            goes to the first condition that matches it, or a node that contains it.

    Returns:
        A tree per condition, and last one with the rest.

    Raises:
        LookupError: if a path or a glob matches nothing; near misses are listed. Roles, classes
            and predicates may match nothing.
        TypeError: if something is not a condition of ``select``.
        ValueError: if a mask does not fit the tree.

    Example:
        >>> import torch
        >>> from parallax import Buffer, Module, Parameter, tree
        >>> class Norm(Module):
        ...     weight: Parameter
        ...     mean: Buffer
        >>> trained, rest = tree.partition(Norm(torch.ones(2), torch.zeros(2)), "trainable")
        >>> trained.mean is None, rest.weight is None
        (True, True)
        >>> tree.combine(trained, rest).mean
        tensor([0., 0.])
    """
    refuse_text("partition", tree)
    survey = Survey(tree)
    found = [match(survey, condition)[0] for condition in conditions]
    rest = len(conditions)
    part_of = [rest] * len(survey.leaves)
    for number in range(rest - 1, -1, -1):  # backwards: the first condition takes precedence
        for index in survey.indices(found[number]):
            part_of[index] = number
    parts = []
    for number in range(rest + 1):
        pairs = zip(survey.leaves, part_of, strict=True)
        parts.append(survey.spec.build([leaf if k == number else None for leaf, k in pairs]))
    return tuple(parts)


def combine(*trees: T) -> T:
    """Combines parts into one tree: in each place the first leaf that is not a hole.

    Args:
        *trees: trees of one skeleton, at least one. Modes and frozen marks may differ; those of
            the first stay.

    Returns:
        The tree of all their leaves.

    Raises:
        TypeError: if there is no tree.
        ValueError: if a tree has another skeleton; the message names the first path.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> tree.combine({"a": torch.ones(()), "b": None}, {"a": None, "b": torch.zeros(())})
        {'a': tensor(1.), 'b': tensor(0.)}
    """
    if not trees:
        raise TypeError(
            "tree.combine(*trees): give at least one tree, such as the parts that "
            "tree.partition returned"
        )
    for number, tree in enumerate(trees):
        if isinstance(tree, (str, torch.nn.Module)):
            check_tree("tree.combine", tree, f"trees[{number}]")
    spec, found, others = core.columns(trees[0], trees[1:])
    for column in others:
        found = [a if a is not None else b for a, b in zip(found, column, strict=True)]
    return cast(T, spec.build(found))
