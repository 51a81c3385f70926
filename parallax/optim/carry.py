"""Takes nested lists and dicts apart into tensors, which can be leaves of a tree, and a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

__all__ = ["cast", "copied", "pack", "unpack"]

_NONE: Mapping[int, Tensor] = MappingProxyType({})
_NUMBERS: dict[type, torch.dtype] = {
    bool: torch.bool,
    int: torch.int64,
    float: torch.float64,
    complex: torch.complex128,
}
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (*_NUMBERS, list, tuple, dict)}


def pack(value: Any, what: str, params: Mapping[int, Tensor] = _NONE) -> tuple[Any, list[Tensor]]:
    """Takes a value apart.

    Args:
        value: tensors, numbers, strings, ``None`` and classes, in lists, tuples and dicts.
        what: where it comes from, for error messages.
        params: tensors that are not taken out; the recipe holds their index.

    Returns:
        A recipe that hashes, and the tensors; numbers become tensors of no dimension, exactly.

    Raises:
        TypeError: if it holds anything else.
    """
    tensors: list[Tensor] = []
    known = {id(param): k for k, param in params.items()}
    return _pack(value, tensors, what, known), tensors


def _pack(value: Any, tensors: list[Tensor], what: str, known: dict[int, int]) -> Any:
    kind = type(value)
    if id(value) in known:
        return ("parameter", known[id(value)])
    if isinstance(value, Tensor):
        tensors.append(value.detach().clone())
        return "tensor"
    if kind in _NUMBERS:
        tensors.append(torch.tensor(value, dtype=_NUMBERS[kind]))
        return ("number", kind.__name__)
    if value is None or kind in (str, type, torch.dtype, torch.device):
        return ("constant", value)
    if kind in (list, tuple):
        return (kind.__name__, tuple([_pack(item, tensors, what, known) for item in value]))
    if isinstance(value, dict):
        items = tuple([_pack(item, tensors, what, known) for item in value.values()])
        return ("dict", tuple([_key(key, what, known) for key in value]), items)
    raise _refusal(kind, what)


def cast(kind: str, number: Tensor) -> Any:
    """The Python number in a tensor of no dimension."""
    return _KINDS[kind](number.item())


def copied(leaf: Tensor, param: Tensor | None) -> Tensor:
    """A copy of a moment; on its parameter's device if it is as large, wherever a file put it."""
    if param is None or param.shape != leaf.shape:
        return leaf.detach().clone()
    return leaf.detach().to(param.device, copy=True)


def _key(key: Any, what: str, known: dict[int, int]) -> tuple[str, Any]:
    if id(key) in known:
        return ("parameter", known[id(key)])
    if isinstance(key, Tensor):
        raise _refusal(type(key), what)
    return ("constant", key)


def _refusal(kind: type, what: str) -> TypeError:
    return TypeError(
        f"{what} keeps a {kind.__name__}, which cannot be carried as a tree; tensors, "
        f"numbers, strings, lists and dicts can"
    )


def unpack(recipe: Any, tensors: list[Tensor], params: Mapping[int, Tensor] = _NONE) -> Any:
    """The inverse of ``pack``."""
    return _unpack(recipe, iter(tensors), params)


def _unpack(recipe: Any, tensors: Iterator[Tensor], params: Mapping[int, Tensor]) -> Any:
    if recipe == "tensor":
        return next(tensors)
    head = recipe[0]
    if head == "parameter":
        return params[recipe[1]]
    if head == "number":
        return cast(recipe[1], next(tensors))
    if head == "constant":
        return recipe[1]
    if head == "dict":
        keys = [params[key] if kind == "parameter" else key for kind, key in recipe[1]]
        return dict(zip(keys, [_unpack(r, tensors, params) for r in recipe[2]], strict=True))
    return _KINDS[head]([_unpack(r, tensors, params) for r in recipe[1]])
