"""Parameter groups: other hyper-parameters for some leaves, named as ``tree.select`` names them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from parallax.tree.masks import as_mask
from parallax.tree.match import find
from parallax.tree.places import Survey

__all__ = ["Group", "Values", "freeze", "labels", "settled", "thaw"]


class Values:
    """Takes tensors out of hyper-parameters, and puts them in again."""

    def __init__(self, tensors: Iterable[Any] = ()) -> None:
        self.tensors: list[Any] = []
        self._given = iter(tensors)

    def take(self, value: Any) -> Any:
        """A value with its tensors taken out; it hashes."""
        if isinstance(value, Tensor):
            self.tensors.append(value)
            return _Hole
        if type(value) is tuple:
            return tuple([self.take(item) for item in value])
        return value

    def give(self, value: Any) -> Any:
        """The inverse of ``take``."""
        if value is _Hole:
            return next(self._given)
        if type(value) is tuple:
            return tuple([self.give(item) for item in value])
        return value


class _Hole:
    """A placeholder for a tensor."""


class Group(NamedTuple):
    """Hyper-parameters for the leaves that a condition matches.

    Attributes:
        condition: what ``tree.select`` takes.
        names: the hyper-parameters that differ.
        values: their values.
    """

    condition: Any
    names: tuple[str, ...]
    values: tuple[Any, ...]

    def over(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """The hyper-parameters, with those of this group replaced."""
        return {**hyper, **dict(zip(self.names, self.values, strict=True))}

    def flatten(self, values: Values) -> tuple[Any, ...]:
        """This group as a constant."""
        return self.condition, self.names, tuple([values.take(value) for value in self.values])

    @classmethod
    def unflatten(cls, constant: tuple[Any, ...], values: Values) -> Group:
        """The inverse of ``flatten``."""
        condition, names, held = constant
        return cls(condition, names, tuple([values.give(value) for value in held]))


_WHOLE = ("foreach", "fused", "differentiable", "capturable")  # of the step, not of a leaf


def freeze(groups: Any, names: tuple[str, ...], cls: str) -> tuple[Group, ...]:
    """Checks the groups that a user gave, and makes constants of them.

    Raises:
        TypeError: if they are not a mapping of mappings, or a name is not a hyper-parameter.
    """
    if groups is None:
        return ()
    if not isinstance(groups, Mapping):
        raise TypeError(
            f"optim.{cls}: groups must be a dict, got a {type(groups).__name__}. "
            f"Write groups={{'**.bias': dict(weight_decay=0)}}"
        )
    made = []
    for condition, changes in groups.items():
        where = f"optim.{cls}: groups[{condition!r}]"
        if not isinstance(changes, Mapping):
            raise TypeError(
                f"{where} must be a dict of hyper-parameters, got {changes!r}. "
                f"Write groups={{'**.bias': dict(weight_decay=0)}}"
            )
        for name in changes:
            if name not in names:
                raise TypeError(
                    f"{where} has no hyper-parameter {name!r}; it has {', '.join(names)}"
                )
            if name in _WHOLE:
                raise TypeError(
                    f"{where}: {name} holds for the whole step, not for a group. "
                    f"Write optim.{cls}({name}=...)"
                )
        made.append(Group(settled(condition), tuple(changes), tuple(changes.values())))
    return tuple(made)


def settled(condition: Any) -> Any:
    """A condition as a constant: a tree that is a mask by its values."""
    return as_mask(condition) or condition


def thaw(groups: tuple[Group, ...]) -> dict[Any, dict[str, Any]] | None:
    """The groups as the user gave them."""
    return {g.condition: g.over({}) for g in groups} or None


def labels(groups: tuple[Group, ...], model: Any, count: int, what: str) -> tuple[int, ...]:
    """Per unique leaf the index of its group plus one; 0 for none.

    A leaf that several conditions match goes to the first of them.

    Raises:
        LookupError: if a condition matches nothing.
    """
    found = [0] * count
    if not groups:
        return tuple(found)
    survey = Survey(model)
    for number, group in enumerate(groups, 1):
        try:
            entries = find(survey, group.condition)[0]
        except LookupError as error:
            raise LookupError(f"{what}: groups[{group.condition!r}]: {error}") from None
        for index in survey.indices(entries):
            found[index] = found[index] or number
    return tuple(found)
