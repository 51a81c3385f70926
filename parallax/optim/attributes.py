"""The attributes of a stateful optimizer; those that change are carried in its state."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from parallax.optim.carry import pack

__all__ = ["Look", "attributes_of", "changed", "look"]

Look = dict[str, tuple[Any, list[Tensor]]]


@cache
def _common() -> frozenset[str]:
    """The attributes of every optimizer: those are carried in other ways, or are not numbers.

    Asked when they are needed, since torch loads dynamo to make an optimizer.
    """
    return frozenset(vars(torch.optim.SGD([torch.zeros(1)])))


def look(optimizer: torch.optim.Optimizer, params: Mapping[int, Tensor]) -> Look:
    """What every attribute holds.

    Args:
        optimizer: the optimizer.
        params: its parameters; where an attribute holds one it is not looked into.

    Returns:
        Per name a recipe and tensors, which compare; what is neither tensors nor numbers is
        compared by what pickle makes of it.
    """
    return {name: _look(value, params) for name, value in attributes_of(optimizer).items()}


def attributes_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The attributes that a class has beside those of every optimizer."""
    common = _common()
    pairs = vars(optimizer).items()
    return {name: value for name, value in pairs if name not in common and not callable(value)}


def _look(value: Any, params: Mapping[int, Tensor]) -> tuple[Any, list[Tensor]]:
    try:
        return pack(value, "", params)
    except TypeError:
        return _pickled(value), []


def _pickled(value: Any) -> Any:
    try:
        return pickle.dumps(value)
    except (TypeError, AttributeError, pickle.PicklingError):
        return id(value)  # of another optimizer it is another one, so that it is refused


def changed(
    optimizer: torch.optim.Optimizer, fresh: Look, params: Mapping[int, Tensor], what: str
) -> dict[str, Any]:
    """The attributes that are not as in a new optimizer, so that the next step needs them.

    Raises:
        TypeError: if one of them cannot be carried as a tree.
    """
    found = {}
    for name, (recipe, tensors) in look(optimizer, params).items():
        old, olds = fresh.get(name, (None, []))
        if old != recipe or not all(map(torch.equal, olds, tensors)):
            value = getattr(optimizer, name)
            pack(value, f"{what}: its attribute {name}", params)
            found[name] = value
    return found
