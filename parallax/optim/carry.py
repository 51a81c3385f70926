"""Lists, dicts and numbers as tensors and a recipe, so that they can be leaves of a tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["pack", "unpack"]

_NUMBERS: dict[type, torch.dtype] = {
    bool: torch.bool,
    int: torch.int64,
    float: torch.float64,
    complex: torch.complex128,
}


def pack(value: Any, what: str) -> tuple[Any, list[Tensor]]:
    """Takes a value apart.

    Args:
        value: tensors, numbers, strings, ``None`` and classes, in lists, tuples and dicts.
        what: where it comes from, for error messages.

    Returns:
        A recipe that hashes, and the tensors; numbers become tensors of no dimension, exactly.

    Raises:
        TypeError: if it holds anything else.
    """
    tensors: list[Tensor] = []
    return _pack(value, tensors, what), tensors


def _pack(value: Any, tensors: list[Tensor], what: str) -> Any:
    kind = type(value)
    if isinstance(value, Tensor):
        tensors.append(value.detach().clone())
        return "tensor"
    if kind in _NUMBERS:
        tensors.append(torch.tensor(value, dtype=_NUMBERS[kind]))
        return ("number", kind)
    if value is None or kind in (str, type, torch.dtype, torch.device):
        return ("constant", value)
    if kind in (list, tuple):
        return (kind, tuple([_pack(item, tensors, what) for item in value]))
    if isinstance(value, dict):
        items = tuple([_pack(item, tensors, what) for item in value.values()])
        return (dict, tuple(value), items)
    raise TypeError(
        f"{what} keeps a {kind.__name__} in its state, which cannot be carried as a tree; tensors, "
        f"numbers, strings, lists and dicts can"
    )


def unpack(recipe: Any, tensors: list[Tensor]) -> Any:
    """The inverse of ``pack``."""
    return _unpack(recipe, iter(tensors))


def _unpack(recipe: Any, tensors: Iterator[Tensor]) -> Any:
    if recipe == "tensor":
        return next(tensors)
    head = recipe[0]
    if head == "number":
        return recipe[1](next(tensors).item())
    if head == "constant":
        return recipe[1]
    if head is dict:
        return dict(zip(recipe[1], [_unpack(r, tensors) for r in recipe[2]], strict=True))
    return head([_unpack(r, tensors) for r in recipe[1]])
