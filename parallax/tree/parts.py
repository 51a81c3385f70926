"""Taking a tree into parts with holes, and putting parts together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from parallax._compat import dynamo
from parallax.tree import core
from parallax.tree.match import ROLES, match
from parallax.tree.places import Survey

__all__ = ["combine", "partition"]

T = TypeVar("T")


def partition(tree: T, *conditions: Any) -> tuple[T, ...]:
    """Takes a tree into parts of its own structure, holes (``None``) where a leaf is elsewhere.

    Args:
        tree: a module, or any pytree that holds modules and tensors.
        *conditions: what ``select`` takes: a path, glob, role, class or function. A leaf goes
            to the first condition that means it, or means a node around it.

    Returns:
        A tree per condition, and last one with the rest.

    Raises:
        LookupError: if a path or a glob matches nothing; near misses are listed. Roles, classes
            and predicates may.
        TypeError: if a condition is none.

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
    found, spec = core.flatten(tree)
    part_of = _by_roles(spec, conditions)
    if part_of is None:
        part_of = _by_conditions(tree, conditions)
    parts = []
    for number in range(len(conditions) + 1):
        pairs = zip(found, part_of)  # noqa: B905  # one per leaf; dynamo traces no strict=
        parts.append(core.unflatten(spec, [leaf if k == number else None for leaf, k in pairs]))
    return tuple(parts)


def _by_roles(spec: core.TreeSpec, conditions: Sequence[Any]) -> list[int] | None:
    """The part of each leaf when all conditions are roles, which structures know by heart."""
    if dynamo.is_compiling() or not all(type(c) is str and c in ROLES for c in conditions):
        return None
    numbers = []
    for part in spec.parts:
        facts = [("slot", False, False)]
        if part is not None:
            facts = list(zip(part.roles, part.frozen, part.trainable, strict=True))
        for role, frozen, trainable in facts:
            held = {role: True, "frozen": frozen, "trainable": trainable}
            meant = [k for k, condition in enumerate(conditions) if held.get(condition, False)]
            numbers.append(meant[0] if meant else len(conditions))
    return numbers


def _by_conditions(tree: Any, conditions: Sequence[Any]) -> list[int]:
    survey = Survey(tree)
    part_of: dict[int, int] = {}
    for number, condition in enumerate(conditions):
        for entry in match(survey, condition)[0]:
            for index in survey.unique(entry):
                part_of.setdefault(index, number)
    return [part_of.get(index, len(conditions)) for index in range(len(survey.leaves))]


def combine(*trees: T) -> T:
    """Puts the parts of a tree together: in each place the first leaf that is no hole.

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
        raise TypeError("combine(*trees): give at least one tree")
    spec, found, others = core.columns(trees[0], trees[1:])
    for column in others:
        found = [a if a is not None else b for a, b in zip(found, column)]  # noqa: B905  # aligned; dynamo traces no strict=
    return cast(T, core.unflatten(spec, found))
